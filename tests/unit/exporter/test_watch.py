# SPDX-License-Identifier: Apache-2.0
"""Incidents of servers are reported with the culprit; on files, which send no notifications."""

import json
import logging
import os
import queue
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from novadocker.exporter import connection_tables, incidents, rings, watch
from novadocker.exporter.collector import WatchCollector
from novadocker.exporter.connection_tables import ConnectionTables
from novadocker.exporter.incidents import Incident, Pending
from novadocker.exporter.kernel_log import KernelLog
from novadocker.exporter.labels import KnownLabels
from novadocker.exporter.rendering import render
from novadocker.exporter.rings import Rings
from novadocker.exporter.tree import Tree
from novadocker.exporter.watch import Watch
from novadocker.exporter.watched import Watched
from novadocker.state_files import incident_socket
from tests.unit.exporter.test_exporter import (
    CONTAINER,
    FOREIGN,
    UUID,
    lose_group,
    put,
    put_container,
    put_identity,
)
from tests.unit.exporter.test_kernel_log import REPORT, Kernel


class Host:
    """A host with a server, whose kernel the test simulates."""

    def __init__(self, root: Path, version: int, kernel: Kernel | None) -> None:
        self.root = root
        self.version = version
        self.told: list[Incident] = []
        log = KernelLog(kernel.descriptor) if kernel else None
        self.watch = Watch(
            root, root / "data/containers", Rings(root / "kernel"), log, self.told.append
        )

    def group(self, controller: str) -> Path:
        hierarchy = controller if self.version == 1 else ""
        return self.root / "sys/fs/cgroup" / hierarchy / "docker" / CONTAINER

    def count(self, oom_kills: int = 3, refused_forks: int = 2) -> None:
        file = "memory.oom_control" if self.version == 1 else "memory.events"
        (self.group("memory") / file).write_text(f"oom_kill {oom_kills}\n")
        (self.group("pids") / "pids.events").write_text(f"max {refused_forks}\n")

    def turn(self) -> list[tuple[str, int, str]]:
        self.told.clear()
        self.watch.turn(0)
        return [(one.kind, one.count, one.process) for one in self.told]

    def lines(self) -> list[str]:
        file = self.root / "kernel" / f"{UUID}.log"
        return [line.split(" ", 1)[1] for line in file.read_text().splitlines()]


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    found = Kernel()
    yield found
    found.close()


@pytest.fixture(params=[1, 2])
def root(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(watch, "_WALK_SECONDS", 0.0)
    monkeypatch.setattr(watch, "_EARLY_WALK_SECONDS", 0.0)
    monkeypatch.setattr(connection_tables, "_EVERY_SECONDS", 0.0)
    if request.param == 2:
        put(tmp_path, {"sys/fs/cgroup/cgroup.controllers": "memory pids\n"})
    put_container(tmp_path, request.param, CONTAINER)
    put_identity(tmp_path, CONTAINER)
    put(tmp_path, {"proc/42/comm": "bomb\n", "proc/43/comm": "bomb\n", "proc/44/comm": "sh\n"})
    return tmp_path


def version_of(root: Path) -> int:
    return 2 if (root / "sys/fs/cgroup/cgroup.controllers").exists() else 1


@pytest.fixture
def host(root: Path, kernel: Kernel) -> Iterator[Host]:
    found = Host(root, version_of(root), kernel)
    yield found
    found.watch.close()


@pytest.fixture
def deaf_host(root: Path) -> Iterator[Host]:
    """Yield a host whose kernel log cannot be read."""
    found = Host(root, version_of(root), None)
    yield found
    found.watch.close()


def test_what_was_before_is_not_told(host: Host) -> None:
    assert host.turn() == []


def test_a_kill_is_told_with_its_process_and_lines(host: Host, kernel: Kernel) -> None:
    host.count(oom_kills=4)
    for line in REPORT:
        kernel.say(line.replace("ab" * 32, CONTAINER))
    assert host.turn() == [("kernel_line", 4, ""), ("oom_kill", 1, "dd (pid 4567)")]
    (_, told) = host.told
    assert told.labels["uuid"] == UUID
    assert told.lines[-1].endswith(REPORT[-1])
    assert host.lines()[0] == REPORT[0]
    assert host.turn() == []


def test_a_kill_waits_a_moment_for_its_process(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.count(oom_kills=4)
    assert host.turn() == []
    monkeypatch.setattr(incidents, "_PATIENCE_SECONDS", 0.0)
    assert host.turn() == [("oom_kill", 1, "")]


def test_without_the_log_counters_tell_alone(deaf_host: Host) -> None:
    deaf_host.count(oom_kills=5)
    assert deaf_host.turn() == [("oom_kill", 2, "")]
    text = render(WatchCollector(deaf_host.watch).collect())
    assert b"\nnovadocker_host_kernel_lines_lost_total " not in text


def test_refused_forks_are_told_with_the_commonest_process(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host.group("pids") / "cgroup.procs").write_text("44\n42\n43\n")
    host.count(refused_forks=12)
    assert host.turn() == [("pids_limit", 10, "bomb")]
    host.count(refused_forks=500)
    assert host.turn() == []
    monkeypatch.setattr(incidents, "_AGAIN_SECONDS", 0.0)
    host.count(refused_forks=501)
    assert host.turn() == [("pids_limit", 489, "bomb")]


def put_connections(host: Host, tracked: int, refused: int) -> None:
    """Write the kernel's connection counters of a server, on two CPUs."""
    lines = f"entries drop\n{tracked:08x} 00000000\n{tracked:08x} {refused:08x}\n"
    put(host.root, {"proc/42/net/stat/nf_conntrack": lines})


def test_a_full_table_is_of_whom_the_kernel_refused(
    host: Host, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incidents, "_AGAIN_SECONDS", 0.0)
    put_connections(host, 1, 31)
    kernel.say("nf_conntrack: nf_conntrack: table full, dropping packet")
    assert host.turn() == [("conntrack_full", 31, "")]
    kernel.say("nf_conntrack: nf_conntrack: table full, dropping packet")
    assert host.turn() == []


def test_a_full_table_is_told_though_the_kernel_does_not_say_so(
    host: Host,
) -> None:
    put(host.root, {"proc/sys/net/netfilter/nf_conntrack_max": "100\n"})
    host.turn()
    # The kernel refuses packets for other reasons too.
    put_connections(host, 89, 7)
    assert host.turn() == []
    put_connections(host, 90, 9)
    assert host.turn() == [("conntrack_full", 2, "")]


def test_a_server_that_is_new_is_watched_from_its_beginning(root: Path, kernel: Kernel) -> None:
    version = version_of(root)
    folder = root / "data/containers" / CONTAINER
    folder.rename(root / "aside")
    host = Host(root, version, kernel)
    try:
        assert host.turn() == []
        (root / "aside").rename(folder)
        kernel.say(f"cgroup: fork rejected by pids controller in /docker/{CONTAINER}")
        host.turn()
        assert host.lines() == [f"cgroup: fork rejected by pids controller in /docker/{CONTAINER}"]
        assert ("pids_limit", 2, "bomb") in [(t.kind, t.count, t.process) for t in host.told]
    finally:
        host.watch.close()


def test_the_log_wakes_it(root: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_WALK_SECONDS", 3600.0)
    told: queue.SimpleQueue[Incident] = queue.SimpleQueue()
    log = KernelLog(kernel.descriptor)
    found = Watch(root, root / "data/containers", Rings(root / "kernel"), log, told.put)
    found.start()
    try:
        kernel.say(f"cgroup: fork rejected by pids controller in /docker/{CONTAINER}")
        assert told.get(timeout=60).kind == "kernel_line"
    finally:
        found.close()


def test_a_container_that_is_no_server_is_nobody(host: Host, kernel: Kernel) -> None:
    put_container(host.root, host.version, FOREIGN)
    kernel.say(f"cgroup: fork rejected by pids controller in /docker/{FOREIGN}")
    assert host.turn() == []
    assert not (host.root / "kernel").exists()


def test_a_kill_that_ended_the_server_is_told_and_stays_counted(host: Host, kernel: Kernel) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for line in REPORT:
        kernel.say(line.replace("ab" * 32, CONTAINER))
    for controller in ("memory", "pids"):
        shutil.rmtree(host.group(controller), ignore_errors=True)
    told = host.turn() + host.turn()
    assert ("oom_kill", 1, "dd (pid 4567)") in told
    assert len(os.listdir("/proc/self/fd")) == before - 2
    text = render(WatchCollector(host.watch).collect()).decode()
    assert f'uuid="{UUID}"' in text
    assert 'kind="oom_kill"} 1\n' in text
    shutil.rmtree(host.root / "data/containers" / CONTAINER)
    host.turn()
    assert host.watch.totals() == []


def test_a_server_that_starts_again_counts_anew(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_group(monkeypatch)
    host.count(oom_kills=0, refused_forks=1)
    assert ("pids_limit", 1, "bomb") in host.turn() + host.turn()
    assert host.watch.totals()[0].kinds["pids_limit"] == 1


def test_a_flood_of_lines_is_bounded(
    host: Host, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incidents, "_AGAIN_SECONDS", 1e9)
    monkeypatch.setattr(rings, "_PER_SECOND", 0.0)
    line = f"cgroup: fork rejected by pids controller in /docker/{CONTAINER}"
    told = []
    for _ in range(20):
        for _ in range(100):
            kernel.say(line)
        told += host.turn()
    assert len(told) == 1
    text = render(WatchCollector(host.watch).collect()).decode()
    assert 'kind="kernel_line"} 2000\n' in text
    (dropped,) = [one for one in text.splitlines() if "lines_dropped_total{" in one]
    assert dropped.endswith(" 1500")


def test_a_disk_that_is_full_costs_lines_alone(
    host: Host, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    (host.root / "kernel").write_text("no folder")
    for _ in range(3):
        kernel.say(f"cgroup: fork rejected by pids controller in /docker/{CONTAINER}")
        host.turn()
    assert len(caplog.records) == 1
    assert host.watch.totals()[0].dropped_lines == 3


def test_an_incident_is_one_line_whatever_a_tenant_calls_things(
    caplog: pytest.LogCaptureFixture,
) -> None:
    labels = KnownLabels({"uuid": UUID, "name": 'a"\n', "project": "p", "flavor": "f"})
    with caplog.at_level(logging.WARNING):
        incidents.log(Incident("oom_kill", labels, 1, "x\ny", ("line",)))
    message = caplog.messages[0]
    assert "\n" not in message
    assert json.loads(message)["process"] == "x\ny"
    assert json.loads(message)["kernel"] == ["line"]


def test_nova_compute_is_told_of_what_it_records(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path_factory.mktemp("s")
    labels = KnownLabels({"uuid": UUID, "name": "n", "project": "p", "flavor": "f"})
    with caplog.at_level(logging.WARNING), incident_socket.listen(folder) as listening:
        listening.setblocking(False)
        for kind in incidents.KINDS:
            incidents.report(folder, Incident(kind, labels, 1))
        told = [incident_socket.parse(listening.recv(1000)) for _ in range(2)]
        with pytest.raises(BlockingIOError):
            listening.recv(1000)
    assert told == [("pids_limit", UUID), ("conntrack_full", UUID)]
    assert [json.loads(message)["event"] for message in caplog.messages] == list(incidents.KINDS)


def test_a_nova_compute_that_is_away_costs_its_record_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = KnownLabels({"uuid": UUID, "name": "n", "project": "p", "flavor": "f"})
    with caplog.at_level(logging.INFO):
        incidents.report(tmp_path, Incident("pids_limit", labels, 1))
    assert json.loads(caplog.messages[0])["event"] == "pids_limit"
    assert f"server {UUID} to nova-compute" in caplog.messages[1]


def test_what_is_pending_is_due_at_once_and_then_every_ten_seconds() -> None:
    pending = Pending()
    assert pending.seconds_left(0, False) is None
    pending.add("pids_limit", 1, 0)
    assert list(pending.take_due(0, False)) == [("pids_limit", 1)]
    pending.add("pids_limit", 2, 1)
    pending.add("pids_limit", 3, 2)
    assert pending.seconds_left(2, False) == 8
    assert list(pending.take_due(9, False)) == []
    assert list(pending.take_due(10, False)) == [("pids_limit", 5)]


def put_second(root: Path) -> str:
    """Add a server whose container comes after the other one, and return its UUID."""
    uuid = UUID.replace("1", "2")
    put_container(root, version_of(root), FOREIGN)
    put_identity(root, FOREIGN, uuid=uuid)
    return uuid


@pytest.mark.parametrize("part", ["read_counts", "event_files", "dropped_connections"])
@pytest.mark.parametrize("fault", [OSError("a fault"), ValueError("a fault")])
def test_a_fault_of_one_server_costs_no_other(
    root: Path,
    part: str,
    fault: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = Host(root, version_of(root), None)
    uuid = put_second(root)
    group = f"/docker/{CONTAINER}"
    classes = {"read_counts": Watched, "event_files": Tree, "dropped_connections": ConnectionTables}
    methods = {"dropped_connections": "_statistics"}
    kind, name = classes[part], methods.get(part, part)
    real = getattr(kind, name)

    def fail(self: object, *arguments: str) -> object:
        if group in (*arguments, getattr(self, "path", "")):
            raise fault
        return real(self, *arguments)

    monkeypatch.setattr(kind, name, fail)
    host.watch._forget(CONTAINER)
    host.turn()
    assert ("oom_kill", uuid) in [(one.kind, one.labels["uuid"]) for one in host.told]
    for _ in range(3):
        host.turn()
    assert uuid in {totals.labels["uuid"] for totals in host.watch.totals()}
    assert len([line for line in caplog.messages if line.endswith(": a fault")]) == 1
    host.watch.close()


def test_a_fault_does_not_end_the_watch(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    turns: queue.SimpleQueue[int] = queue.SimpleQueue()

    def fail(self: Watch, seconds: float) -> None:
        turns.put(1)
        raise ValueError("a fault")

    monkeypatch.setattr(Watch, "turn", fail)
    host = Host(root, version_of(root), None)
    host.watch.start()
    try:
        assert [turns.get(timeout=60) for _ in range(3)] == [1] * 3
    finally:
        host.watch.close()
    assert caplog.text.count("Failed to watch for incidents of servers: a fault") == 1
