# SPDX-License-Identifier: Apache-2.0
"""The exporter, on trees of files in the form of both versions of control groups."""

import base64
import errno
import ipaddress
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from novadocker.cmd import exporter
from novadocker.exporter import files, host, parsing, serving
from novadocker.exporter.collector import Asked, HostCollector, Places
from novadocker.exporter.identity import Identities
from novadocker.exporter.labels import KnownLabels
from novadocker.exporter.rendering import render
from novadocker.exporter.tree import Tree
from novadocker.state_files import port_rates, user_budgets
from novadocker.state_files.port_rates import PortRate

CONTAINER = "ab" * 32
FOREIGN = "cd" * 32
UUID = "11111111-2222-3333-4444-555555555555"
NAME = 'in"stance\n\\1'

VERSION_1 = {
    "cpuacct/cpuacct.usage": "1500000000\n",
    "cpu/cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 2500000000\n",
    "cpu/cpu.cfs_quota_us": "150000\n",
    "cpu/cpu.cfs_period_us": "100000\n",
    "memory/memory.usage_in_bytes": "1000\n",
    "memory/memory.limit_in_bytes": "4096\n",
    "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 300\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    "pids/pids.current": "7\n",
    "pids/pids.max": "100\n",
    "pids/pids.events": "max 2\n",
    "pids/cgroup.procs": "42\n43\n",
    "blkio/blkio.throttle.io_service_bytes": "254:0 Read 512\n254:0 Write 1024\nTotal 1536\n",
    "blkio/blkio.throttle.io_serviced": "254:0 Read 1\n254:0 Write 2\nTotal 3\n",
    "blkio/blkio.throttle.read_bps_device": "254:0 4096\n",
    "blkio/blkio.throttle.write_bps_device": "254:0 8192\n",
    "blkio/blkio.throttle.read_iops_device": "254:0 16\n",
    "blkio/blkio.throttle.write_iops_device": "254:0 32\n",
}
VERSION_2 = {
    "cpu.stat": "usage_usec 1500000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 2500000\n",
    "cpu.max": "150000 100000\n",
    "memory.current": "1000\n",
    "memory.max": "4096\n",
    "memory.stat": "inactive_file 300\nslab_reclaimable 100\n",
    "memory.events": "low 0\noom 4\noom_kill 3\n",
    "memory.pressure": "some avg10=0.00 total=2000000\nfull avg10=0.00 total=1000000\n",
    "pids.current": "7\n",
    "pids.max": "100\n",
    "pids.events": "max 2\n",
    "cgroup.procs": "42\n43\n",
    "io.max": "254:0 rbps=4096 wbps=8192 riops=16 wiops=32\n7:0 rbps=max\n",
    "io.stat": "254:0 rbytes=512 wbytes=1024 rios=1 wios=2 dbytes=0 dios=0\n7:0 \n",
}
NET_DEV = (
    "Inter-|   Receive                            |  Transmit\n"
    " face |bytes packets errs drop fifo frame compressed multicast|bytes packets\n"
    "    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n"
    "  eth0: 100 1 2 3 0 0 0 0 200 4 5 6 0 0 0 0\n"
)
CONNTRACK = "entries  searched drop early_drop\n0000001f 0 00000002 0\n0000001f 0 0000000a 0\n"

EXPECTED = {
    "cpu_seconds_total": 1.5,
    "cpu_limit_cores": 1.5,
    "cpu_periods_total": 10,
    "cpu_throttled_periods_total": 4,
    "cpu_throttled_seconds_total": 2.5,
    "memory_usage_bytes": 1000,
    "memory_working_set_bytes": 700,
    "memory_limit_bytes": 4096,
    "oom_kills_total": 3,
    "pids": 7,
    "pids_limit": 100,
    "pids_limit_hits_total": 2,
    "conntrack_entries": 31,
    "disk_read_bytes_total": 512,
    "disk_written_bytes_total": 1024,
    "disk_reads_total": 1,
    "disk_writes_total": 2,
    "disk_read_limit_bytes_per_second": 4096,
    "disk_write_limit_bytes_per_second": 8192,
    "disk_read_limit_requests_per_second": 16,
    "disk_write_limit_requests_per_second": 32,
    "network_receive_limit_bytes_per_second": 1250,
    "network_transmit_limit_bytes_per_second": 2500,
    "load1": 0.5,
    "load5": 1.25,
    "load15": 12,
    "start_time_seconds": 1795608000,
    "console_log_bytes": 7,
    "network_receive_bytes_total": 100,
    "network_receive_packets_total": 1,
    "network_receive_errors_total": 2,
    "network_receive_drops_total": 3,
    "network_transmit_bytes_total": 200,
    "network_transmit_packets_total": 4,
    "network_transmit_errors_total": 5,
    "network_transmit_drops_total": 6,
}


def put(root: Path, files: Mapping[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def put_container(root: Path, version: int, container: str, parent: str = "docker") -> None:
    files = VERSION_1 if version == 1 else VERSION_2
    for name, content in files.items():
        controller, _, file = name.rpartition("/")
        put(root / "sys/fs/cgroup" / controller / parent / container, {file: content})


def put_identity(root: Path, container: str, name: str = "", uuid: str = UUID) -> None:
    labels = {
        "org.openstack.nova.schema": "1",
        "org.openstack.nova.instance_uuid": uuid,
        "org.openstack.nova.instance_name": NAME,
        "org.openstack.nova.project_id": "p1",
        "org.openstack.nova.flavor": "m1.tiny",
    }
    stored = {
        "Name": name or f"/nova-{uuid}",
        "Config": {"Labels": labels},
        "State": {"StartedAt": "2026-11-25T12:00:00.123456789Z"},
    }
    folder = f"data/containers/{container}"
    put(root, {f"{folder}/config.v2.json": json.dumps(stored)})
    put(root, {f"{folder}/{container}-json.log": "1234", f"{folder}/{container}-json.log.1": "123"})


def places(root: Path) -> Places:
    return Places(root, root / "data", str(root / "engine"), root / "state")


def scrape(root: Path) -> dict[tuple[str, str], float]:
    """Return the values of a scrape, parsed from the text, by name and uuid."""
    registry = CollectorRegistry()
    registry.register(HostCollector(places(root)))
    text = generate_latest(registry).decode()
    return {
        (sample.name, sample.labels.get("uuid", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(params=[1, 2])
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return the root directory of a host with one server, for each version."""
    put_container(tmp_path, request.param, CONTAINER)
    put_identity(tmp_path, CONTAINER)
    put(tmp_path, {"proc/42/net/dev": NET_DEV, "proc/42/net/stat/nf_conntrack": CONNTRACK})
    put(tmp_path, {f"state/loads/{UUID}": "0.50 1.25 12.00 1/7 43\n"})
    port_rates.tell(tmp_path / "state", UUID, [("tap1", "eth0")], PortRate(1250, 2500))
    if request.param == 2:
        put(tmp_path, {"sys/fs/cgroup/cgroup.controllers": "cpu memory io pids\n"})
    return tmp_path


def test_budgets_of_users(root: Path) -> None:
    put(
        root,
        {
            "proc/sys/fs/inotify/max_user_instances": "128\n",
            "proc/sys/fs/pipe-user-pages-soft": "0\n",
        },
    )
    user_budgets.tell(root / "state", {"inotify_instances": 100, "pipe_pages": 48})
    registry = CollectorRegistry()
    registry.register(HostCollector(places(root)))
    found = {
        (sample.name.removeprefix("novadocker_host_"), sample.labels["budget"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if "budget" in sample.labels
    }
    # Without a limit, an alarm has nothing to compare with.
    assert found == {
        ("user_budget", "inotify_instances"): 100,
        ("user_budget", "pipe_pages"): 48,
        ("user_budget_limit", "inotify_instances"): 128,
    }


def test_every_counter_of_a_server(root: Path) -> None:
    found = scrape(root)
    values = {
        name.removeprefix("novadocker_server_"): value
        for (name, uuid), value in found.items()
        if uuid == UUID
    }
    assert {name: values.get(name) for name in EXPECTED} == EXPECTED
    if Tree(root).version == 2:
        assert values["memory_unreclaimable_bytes"] == 600
        assert "stalled_seconds_total" in values
    else:
        assert "memory_unreclaimable_bytes" not in values


def test_the_lower_limit_of_the_drivers_and_the_switchs_is_a_ports(root: Path) -> None:
    rates = {"tap1": PortRate(1000, None), "tap2": PortRate(1, 1)}
    registry = CollectorRegistry()
    registry.register(HostCollector(places(root), Asked(rates=lambda: rates)))
    labels = {"uuid": UUID, "name": NAME, "project": "p1", "flavor": "m1.tiny", "device": "eth0"}
    limit = "novadocker_server_network_{}_limit_bytes_per_second"
    assert registry.get_sample_value(limit.format("receive"), labels) == 1000
    assert registry.get_sample_value(limit.format("transmit"), labels) == 2500


def test_the_same_value_of_another_label() -> None:
    labels = KnownLabels({"uuid": "1"})
    assert labels.with_(("kind",), ("data",)).text == '{uuid="1",kind="data"}'
    assert labels.with_(("process",), ("data",)).text == '{uuid="1",process="data"}'
    assert labels.with_(("kind",), ("data",)) is labels.with_(("kind",), ("data",))


def test_a_name_with_quotes_and_newlines_is_one_label(root: Path) -> None:
    registry = CollectorRegistry()
    registry.register(HostCollector(places(root)))
    text = generate_latest(registry).decode()
    (family,) = [
        family
        for family in text_string_to_metric_families(text)
        if family.name == "novadocker_server_pids"
    ]
    assert family.samples[0].labels == {
        "uuid": UUID,
        "name": NAME,
        "project": "p1",
        "flavor": "m1.tiny",
    }


def test_a_group_of_the_systemd_driver_is_found(tmp_path: Path) -> None:
    put_container(tmp_path, 1, f"docker-{CONTAINER}.scope", "system.slice")
    assert [found for found, _ in Tree(tmp_path).containers()] == [CONTAINER]


def test_groups_that_a_tenant_named_are_not_looked_at(root: Path) -> None:
    version = Tree(root).version
    put_container(root, version, FOREIGN, f"docker/{CONTAINER}")
    assert [found for found, _ in Tree(root).containers()] == [CONTAINER]


def test_labels_of_an_image_make_no_server(root: Path) -> None:
    put_container(root, Tree(root).version, FOREIGN)
    put_identity(root, FOREIGN, name="/other")
    assert scrape(root)["novadocker_host_servers", ""] == 1


def test_a_container_without_metadata_yet_is_seen_later(root: Path) -> None:
    path = root / "data/containers" / CONTAINER / "config.v2.json"
    content = path.read_text()
    path.write_text(content[:20])
    collector = HostCollector(places(root))

    def servers() -> float:
        (family,) = [f for f in collector.collect() if f.name == "novadocker_host_servers"]
        return family.samples[0].value

    assert servers() == 0
    path.write_text(content)
    assert servers() == 1


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("2026-11-25T12:00:01Z", 1795608001),
        ("0001-01-01T00:00:00Z", None),
        ("2026-99-25T12:00:01Z", None),
        ("soon", None),
        (None, None),
    ],
)
def test_the_time_of_the_start_is_that_of_the_last_one(
    root: Path, told: str | None, expected: int | None
) -> None:
    identities = Identities(root / "data/containers")
    first = identities.find(CONTAINER)
    assert first is not None
    assert first.started_at == 1795608000
    path = root / "data/containers" / CONTAINER / "config.v2.json"
    stored = json.loads(path.read_text())
    stored["State"]["StartedAt"] = told
    # The engine replaces the file in this way.
    (path.parent / "new").write_text(json.dumps(stored))
    (path.parent / "new").rename(path)
    second = identities.find(CONTAINER)
    assert second is not None
    assert second.started_at == expected


@pytest.mark.parametrize("kept", [0, 100])
def test_a_server_that_is_removed_at_any_moment_of_a_scrape(
    root: Path, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [root / part for part in ("sys/fs/cgroup", "proc/42", f"data/containers/{CONTAINER}")]
    real = {name: getattr(os, name) for name in ("open", "scandir", "stat")}
    calls_left = moments = 0

    def calling(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls_left
            calls_left -= 1
            if calls_left == 0:
                for part in parts:
                    part.rename(part.with_suffix(".gone"))
            return real[name](*arguments, **options)

        return call

    while calls_left <= 0:
        moments += 1
        collector = HostCollector(places(root), kept_files=kept)
        with monkeypatch.context() as patched:
            for name in real:
                patched.setattr(os, name, calling(name))
            calls_left = moments
            told = list(collector.collect())
        collector.close()
        assert len(told) > 40
        if calls_left <= 0:
            for part in parts:
                part.with_suffix(".gone").rename(part)
    # The moments are the files of the group, a process and the engine, and some directories.
    assert moments > 20


def test_a_fault_of_one_server_costs_no_other(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = UUID.replace("1", "2")
    put_container(root, Tree(root).version, FOREIGN)
    put_identity(root, FOREIGN, uuid=other)

    def fail(tree: Tree, path: str) -> Any:
        if path.endswith(CONTAINER):
            raise ValueError("a fault")
        return sample(tree, path)

    sample = Tree.sample
    monkeypatch.setattr(Tree, "sample", fail)
    collector = HostCollector(places(root))
    for _ in range(3):
        text = render(collector.collect())
    collector.close()
    assert f'uuid="{other}"'.encode() in text
    assert f'uuid="{UUID}"'.encode() not in text
    assert caplog.text.count(f"counters of container {CONTAINER}: a fault") == 1


def test_a_group_that_vanished_has_no_sample(root: Path) -> None:
    assert Tree(root).sample(f"/docker/{FOREIGN}") is None


@pytest.mark.parametrize(
    ("version", "missing"),
    [(1, name) for name in VERSION_1 if name != "pids/cgroup.procs"]
    + [(2, name) for name in VERSION_2 if name != "cgroup.procs"],
)
def test_a_file_that_the_kernel_lacks_costs_no_other(
    tmp_path: Path, version: int, missing: str
) -> None:
    put_container(tmp_path, version, CONTAINER)
    put_identity(tmp_path, CONTAINER)
    if version == 2:
        put(tmp_path, {"sys/fs/cgroup/cgroup.controllers": ""})
    before = set(scrape(tmp_path))
    controller, _, file = missing.rpartition("/")
    (tmp_path / "sys/fs/cgroup" / controller / "docker" / CONTAINER / file).unlink()
    lost = before - set(scrape(tmp_path))
    assert 1 <= len(lost) <= 4, missing


def test_systemd_moves_its_processes_below(root: Path) -> None:
    tree = Tree(root)
    folder = root / "sys/fs/cgroup" / ("pids" if tree.version == 1 else "") / "docker" / CONTAINER
    (folder / "cgroup.procs").write_text("")
    put(folder, {"init.scope/cgroup.procs": "42\n"})
    sample = tree.sample(f"/docker/{CONTAINER}")
    assert sample is not None
    assert list(sample.ports) == ["eth0"]


def test_the_host(root: Path) -> None:
    put(
        root,
        {
            "proc/loadavg": "0.00 0.00 0.00 2/345 999\n",
            "proc/sys/kernel/pid_max": "4194304\n",
            "proc/sys/kernel/threads-max": "1000\n",
            "proc/sys/net/netfilter/nf_conntrack_count": "31\n",
            "proc/sys/net/netfilter/nf_conntrack_max": "65536\n",
            "proc/net/stat/nf_conntrack": CONNTRACK,
            "proc/sys/fs/aio-nr": "4096\n",
            "proc/sys/fs/aio-max-nr": "65536\n",
            "proc/sys/fs/file-nr": "1200\t0\t2466165\n",
            "proc/key-users": (
                "    0:    11 10/10 900/1000000 188/25000000\n"
                "  995:     2 2/2 150/200 26/20000\n 1000:     2 2/2 3/200 26/20000\n"
            ),
            "proc/meminfo": "MemTotal: 100 kB\nSlab: 10 kB\nDirty: 1 kB\nHugePages_Total: 0\n",
            "var/log/syslog": "12345",
            "var/log/nova/nova-compute.log": "123",
        },
    )
    found = {name: value for (name, uuid), value in scrape(root).items() if not uuid}
    expected = {
        "threads": 345,
        "threads_limit": 1000,
        "conntrack_entries": 31,
        "conntrack_limit": 65536,
        "conntrack_drops_total": 12,
        "aio_requests": 4096,
        "aio_requests_limit": 65536,
        "open_files": 1200,
        "open_files_limit": 2466165,
        "user_keys": 150,
        "user_keys_limit": 200,
        "memory_bytes": 102400,
        "slab_bytes": 10240,
        "dirty_bytes": 1024,
        "log_bytes": 8,
        "engine_up": 0,
    }
    assert {name: found.get(f"novadocker_host_{name}") for name in expected} == expected
    assert "novadocker_host_engine_ping_seconds" not in found


@pytest.mark.parametrize(
    ("answer", "up"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK", True),
        (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", False),
        (b"nonsense\r\n", False),
        (b"", False),
    ],
)
def test_the_engine_is_up_when_it_answers(tmp_path: Path, answer: bytes, up: bool) -> None:
    path = str(tmp_path / "engine")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        seconds = host.ping_engine(path)
        thread.join()
    assert (seconds is not None) is up


def test_an_engine_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "ENGINE_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "engine"))
        listener.listen()
        assert host.ping_engine(str(tmp_path / "engine")) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max\n", None), ("9223372036854771712\n", None), ("5\n", 5), (None, None), ("x", None)],
)
def test_limits(text: str | None, expected: int | None) -> None:
    assert parsing.limit(text) == expected


def test_without_the_right_to_read_metadata_it_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        exporter.main(["--data-root", str(tmp_path)])
    assert "data root" in capsys.readouterr().err


def test_capabilities_give_the_right_to_read_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """access(2) answers for the real user without the capabilities of the process."""
    (tmp_path / "containers").mkdir()
    monkeypatch.setattr(os, "access", lambda *_, **__: False)

    def end(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(exporter, "_security", end)
    with pytest.raises(InterruptedError):
        exporter.main(["--data-root", str(tmp_path)])


def test_no_quota_is_no_limit() -> None:
    assert parsing.cores_version_1("-1\n", "100000\n") is None
    assert parsing.cores_version_2("max 100000\n") is None


# -- reading files ----------------------------------------------------------------------


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("most", [0, 3, 100])
def test_kept_files_tell_the_same_however_many_are_kept(root: Path, most: int) -> None:
    path = f"/docker/{CONTAINER}"
    before = open_files()
    tree = Tree(root, kept_files=most)
    first = tree.sample(path)
    assert first == Tree(root, kept_files=0).sample(path)
    assert open_files() - before <= most
    version = tree.version
    controller = root / "sys/fs/cgroup" / ("pids" if version == 1 else "") / "docker" / CONTAINER
    (controller / "pids.current").write_text("8\n")
    second = tree.sample(path)
    assert second is not None
    assert second.pids == 8
    tree.keep(set())
    assert open_files() == before


def test_five_hundred_servers_are_told_with_few_files_kept(tmp_path: Path) -> None:
    for number in range(500):
        container = f"{number:064x}"
        group = f"sys/fs/cgroup/pids/docker/{container}"
        put(tmp_path, {f"{group}/cgroup.procs": "42\n", f"{group}/pids.current": "7\n"})
        put_identity(tmp_path, container, uuid=f"{number:08x}-2222-3333-4444-555555555555")
    collector = HostCollector(places(tmp_path), kept_files=100)
    for _ in range(2):
        (told,) = (m for m in collector.collect() if m.name == "novadocker_server_pids")
        assert len({sample.labels["uuid"] for sample in told.samples}) == 500
    assert 0 < open_below(tmp_path) <= 100
    collector.close()
    assert open_below(tmp_path) == 0


def open_below(folder: Path) -> int:
    """Return the number of this process's open files below a directory."""
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        # The file descriptor of this list is closed already.
        with suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(folder))
    return found


def test_a_file_larger_than_one_read_is_read_whole(tmp_path: Path) -> None:
    text = "x" * 40_000
    (tmp_path / "large").write_text(text)
    assert files.read(str(tmp_path / "large")) == text
    kept = files.KeptFiles(1)
    assert kept.read("group", str(tmp_path / "large")) == text
    kept.close()


def lose_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the next read of an open file fail, as for a deleted control group."""
    real, answers = os.pread, [OSError(errno.ENODEV, "gone")]

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        if answers:
            raise answers.pop()
        return real(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", pread)


def test_a_file_that_went_away_under_its_descriptor_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, path = files.KeptFiles(1), str(tmp_path / "pids.current")
    Path(path).write_text("1\n")
    assert kept.read("group", path) == "1\n"
    Path(path).unlink()
    Path(path).write_text("2\n")
    lose_group(monkeypatch)
    assert kept.read("group", path) == "2\n"
    kept.close()


def test_ports_are_those_of_the_driver(root: Path) -> None:
    line = " 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n"
    many = "".join(f"eth{number}:{line}" for number in range(500))
    assert list(parsing.ports(f"br0:{line}eth7:{line}eth0x:{line}")) == ["eth7"]
    # Names of a tenant's devices, which are not those of ports.
    for name in ("x\x1ceth8", "x\x85eth8", "\x1ceth8", "\x85eth8"):
        assert parsing.ports(f"{name}:{line}") == {}
    assert len(parsing.ports(many)) < 100


# -- serving requests ----------------------------------------------------------------------


@pytest.fixture
def registry(root: Path) -> Iterator[CollectorRegistry]:
    found = CollectorRegistry()
    collector = HostCollector(places(root), kept_files=100)
    found.register(collector)
    yield found
    collector.close()


def test_the_page_says_what_the_library_would(registry: CollectorRegistry) -> None:
    def parsed(text: bytes) -> list[tuple[str, str, str, list[Sample]]]:
        return [
            (family.name, family.type, family.documentation, family.samples)
            for family in text_string_to_metric_families(text.decode())
        ]

    class Once:
        told = list(registry.collect())

        def collect(self) -> list[Metric]:
            return self.told

    own = parsed(render(Once.told))
    assert own == parsed(generate_latest(Once()))
    assert len(own) > 40


def ask(application: serving.Application, **request: str) -> tuple[str, bytes]:
    told: list[str] = []
    environment = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", **request}
    parts = application(environment, lambda status, headers: told.append(status))
    return told[0][:3], b"".join(parts)


def test_only_the_page_of_metrics_can_be_read(registry: CollectorRegistry) -> None:
    application = serving.make_application(registry)
    status, content = ask(application)
    assert status == "200"
    assert b"novadocker_server_pids{" in content
    assert ask(application, PATH_INFO="/") == ("404", b"")
    assert ask(application, REQUEST_METHOD="POST") == ("405", b"")


def test_nothing_is_told_without_the_password(registry: CollectorRegistry) -> None:
    application = serving.make_application(registry, b"user:secret")

    def with_password(line: str) -> str:
        encoded = base64.b64encode(line.encode()).decode()
        return ask(application, HTTP_AUTHORIZATION=f"Basic {encoded}")[0]

    assert ask(application) == ("401", b"")
    assert ask(application, PATH_INFO="/other") == ("401", b"")
    assert with_password("user:wrong") == "401"
    assert with_password("user:secret") == "200"


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        ("user:secret\n", 0o644, "give access to all users"),
        ("user\n", 0o600, "no line"),
        ("", 0o600, "no line"),
    ],
)
def test_a_bad_password_file_is_refused(
    tmp_path: Path, content: str, mode: int, reason: str
) -> None:
    path = tmp_path / "password"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(ValueError, match=reason):
        serving.read_password(path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--address", "0.0.0.0"),
        ("--address", "192.0.2.1", "--certificate", "c", "--key", "k"),
        ("--address", "::", "--password-file", "p"),
        ("--certificate", "c"),
        ("--password-file", "missing"),
    ],
)
def test_it_does_not_listen_to_all_without_tls_and_a_password(
    tmp_path: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "containers").mkdir()
    with pytest.raises(SystemExit):
        exporter.main(["--data-root", str(tmp_path), *arguments])
    assert "Traceback" not in capsys.readouterr().err


def test_https_with_a_password(registry: CollectorRegistry, tmp_path: Path) -> None:
    tls = serving.Tls(tmp_path / "certificate", tmp_path / "key")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-subj", "/CN=host", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(tls.key), "-out", str(tls.certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    application = serving.make_application(registry, b"user:secret")
    address = ipaddress.ip_address("127.0.0.1")
    server, thread = serving.start(address, 0, application, tls)
    try:
        # A client without a TLS handshake must not delay other clients.
        with socket.create_connection(("127.0.0.1", server.server_port)):
            url = f"https://127.0.0.1:{server.server_port}/metrics"
            verify = str(tls.certificate)
            assert requests.get(url, verify=verify, timeout=30).status_code == 401
            auth = ("user", "secret")
            answer = requests.get(url, verify=verify, auth=auth, timeout=30)
            assert "novadocker_server_pids{" in answer.text
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_port_that_is_taken(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        application = serving.make_application(registry)
        assert serving.run(ipaddress.ip_address("127.0.0.1"), port, application) == 1
    assert f"port {port}" in caplog.text
    assert "in use" in caplog.text
