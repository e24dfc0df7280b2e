# SPDX-License-Identifier: Apache-2.0
"""A container's own view of /proc by a real lxcfs, which is killed and restarted."""

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest

from novadocker import exception
from novadocker.privsep.guest import lxcfs as guest_lxcfs
from novadocker.privsep.guest import runtime
from novadocker.virt.docker.containers.servers import ServerList
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.guest import load_average, lxcfs
from novadocker.virt.docker.model import ContainerSpec, Isolation, Limits
from tests.engine import daemons
from tests.waiting import until

pytestmark = pytest.mark.skipif(not shutil.which("lxcfs"), reason="lxcfs is not installed")
OTHER = "0e6e0b4b-7a41-4f0b-9f1a-0f64e1f5a1c2"
UUID = "0e6e0b4b-7a41-4f0b-9f1a-0f64e1f5a1c1"


class Served:
    """The test's own lxcfs."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.options = options
        self.mount = folder / "lxcfs"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.mount.mkdir(parents=True, exist_ok=True)
        command = ["lxcfs", "-f", "--enable-cfs", *self.options, "-p", f"{self._folder}/lxcfs.pid"]
        self._process = daemons.start(
            [*command, str(self.mount)],
            self._folder / "lxcfs.log",
            lambda: (self.mount / "proc" / "meminfo").exists(),
        )

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", self.mount], check=True)

    def restart(self) -> None:
        self.unmount()
        self.start()


@pytest.fixture
def served(state_folder: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    """Start an lxcfs that counts load averages, or with the parameter's options."""
    found = Served(state_folder, *getattr(request, "param", ["-l"]))
    found.start()
    yield found
    found.kill()
    found.unmount()


@pytest.fixture
def view(
    served: Served, engine: Engine, averages: load_average.Loads, monkeypatch: pytest.MonkeyPatch
) -> Iterator[lxcfs.Lxcfs]:
    monkeypatch.setattr(lxcfs, "_LOOK_SECONDS", 0.1)
    found = lxcfs.Lxcfs(str(served.mount), engine, ServerList(engine), averages)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def averages(
    engine: Engine, state_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[load_average.Loads]:
    monkeypatch.setattr(load_average, "_LOOK_SECONDS", 0.1)
    found = load_average.Loads(state_folder, engine, ServerList(engine))
    found.start()
    yield found
    found.stop()


@pytest.fixture
def boot(
    view: lxcfs.Lxcfs, engine: Engine, docker_client: docker.APIClient, busybox_image: str
) -> Iterator[Callable[..., str]]:
    made: list[str] = []
    namespaces: list[str] = []

    def call(uuid: str = UUID, own_ids: bool = False) -> str:
        limits = Limits(cpu_shares=512, memory_bytes=64 << 20, swap_bytes=0, pids=64)
        spec = ContainerSpec(
            name=f"nova-{uuid}",
            image_id=busybox_image,
            hostname="web-1",
            labels={
                "org.openstack.nova.schema": "1",
                "org.openstack.nova.instance_uuid": uuid,
            },
            runtime="novadocker" if own_ids else "runc",
            limits=replace(limits, cpuset_cpus=frozenset([0])),
            isolation=Isolation(),
            console_log_max_mb=1,
            entrypoint=("sleep", "1d"),
            mounts=view.mounts(uuid, view.look()),
        )
        made.append(engine.create_container(spec))
        if own_ids:
            namespaces.append(uuid)
            runtime.create_own_namespace(uuid, 1_900_478_464, 65536)
            runtime.bind_container(made[-1], uuid)
        engine.start_container(made[-1])
        return made[-1]

    yield call
    for container in made:
        engine.remove_container(container)
    for uuid in namespaces:
        runtime.delete_namespace(uuid)


@pytest.fixture
def run(docker_client: docker.APIClient) -> Callable[..., str]:
    def call(container: str, *command: str) -> str:
        created = docker_client.exec_create(container, list(command))
        return str(docker_client.exec_start(created).decode())

    return call


def total_kb(run: Any, container: str) -> str:
    shown = run(container, "cat", "/proc/meminfo")
    return str(shown.splitlines()[0].split()[1]) if shown.startswith("MemTotal") else shown


def test_the_container_s_own_values(boot: Any, run: Any, docker_client: docker.APIClient) -> None:
    container = boot()
    assert total_kb(run, container) == str(64 << 10)
    assert run(container, "cat", "/sys/devices/system/cpu/online").strip() == "0"
    assert run(container, "grep", "-c", "^processor", "/proc/cpuinfo").strip() == "1"
    assert float(run(container, "cat", "/proc/uptime").split()[0]) < 60
    assert float(run(container, "cat", "/proc/loadavg").split()[0]) <= 1.0
    assert "ead-only" in run(container, "sh", "-c", "echo x >/proc/uptime")
    docker_client.update_container(container, mem_limit=128 << 20, memswap_limit=128 << 20)
    assert total_kb(run, container) == str(128 << 10)


def test_a_server_with_ids_of_its_own(
    served: Served, boot: Any, run: Any, engine: Engine, instance_uuid: str
) -> None:
    container = boot(instance_uuid, own_ids=True)
    pid = engine.inspect_container(container).pid
    assert Path(f"/proc/{pid}/uid_map").read_text().split()[1] != "0"
    assert total_kb(run, container) == str(64 << 10)
    assert float(run(container, "cat", "/proc/uptime").split()[0]) < 60
    assert float(run(container, "cat", "/proc/loadavg").split()[0]) <= 1.0
    assert "ead-only" in run(container, "sh", "-c", "echo x >/proc/uptime")
    served.kill()
    served.restart()
    until(lambda: total_kb(run, container) == str(64 << 10))
    until(lambda: run(container, "cat", "/sys/devices/system/cpu/online") == "0\n")


def test_a_new_lxcfs_serves_running_containers(
    served: Served, boot: Any, run: Any, engine: Engine
) -> None:
    container = boot()
    pid = engine.inspect_container(container).pid
    for _ in range(2):
        served.kill()
        assert "not connected" in run(container, "cat", "/proc/meminfo")
        served.restart()
        until(lambda: total_kb(run, container) == str(64 << 10))
        until(lambda: run(container, "cat", "/sys/devices/system/cpu/online") == "0\n")
        assert "ead-only" in run(container, "sh", "-c", "echo x >/proc/uptime")
    lines = Path(f"/proc/{pid}/mountinfo").read_text()
    assert engine.inspect_container(container).pid == pid
    assert lines.count(" /proc/meminfo /proc/meminfo ") == 1
    # A second call restores nothing, because nothing is missing.
    assert guest_lxcfs.restore_view(container, pid, str(served.mount)) == 0
    # The function mounts only the host's lxcfs.
    with pytest.raises(ValueError, match="not mounted"):
        guest_lxcfs.restore_view(container, pid, "/proc")
    with pytest.raises(ProcessLookupError):
        guest_lxcfs.restore_view("0" * 64, pid, str(served.mount))


def test_a_boot_waits_for_a_broken_lxcfs(
    served: Served, boot: Any, run: Any, view: lxcfs.Lxcfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = view.look()
    assert view.mounts(UUID, before)
    served.kill()
    # The driver must not reuse its last look for long.
    monkeypatch.setattr(lxcfs, "_FRESH_SECONDS", 0.0)
    monkeypatch.setattr(lxcfs, "_WAIT_SECONDS", 0.3)
    with pytest.raises(exception.ViewUnavailable, match="not connected"):
        view.mounts(UUID, before)
    with pytest.raises(exception.ViewUnavailable, match="not connected"):
        view.mounts(UUID, view.look())
    served.unmount()
    with pytest.raises(exception.ViewUnavailable):
        view.mounts(UUID, view.look())
    served.start()
    monkeypatch.setattr(lxcfs, "_WAIT_SECONDS", 20.0)
    assert total_kb(run, boot()) == str(64 << 10)


def test_a_host_without_lxcfs(engine: Engine, averages: load_average.Loads, tmp_path: Path) -> None:
    found = lxcfs.Lxcfs(str(tmp_path), engine, ServerList(engine), averages)
    found.start()
    assert found.mounts(UUID, found.look()) == ()
    found.stop()
    assert lxcfs.Lxcfs("", engine, ServerList(engine), averages).mounts(UUID, 0.0) == ()


def shown_load(file: Path) -> tuple[float, int, int]:
    """Return the one-minute load average, the running threads and all threads.

    The file is read outside the server, because repeated reads inside would be a load themselves.
    """
    first, _, _, counts, _ = file.read_text().split()
    running, total = counts.split("/")
    return float(first), int(running), int(total)


@pytest.mark.parametrize("served", [[]], indirect=True)
def test_load_averages_where_lxcfs_counts_none(
    boot: Any,
    run: Any,
    averages: load_average.Loads,
    engine: Engine,
    docker_client: docker.APIClient,
    state_folder: Path,
    request: pytest.FixtureRequest,
) -> None:
    busy, idle = boot(UUID), boot(OTHER)
    load, no_load = state_folder / "loads" / UUID, state_folder / "loads" / OTHER
    loops = docker_client.exec_create(
        busy, ["sh", "-c", "while :; do :; done & while :; do :; done"]
    )
    docker_client.exec_start(loops, detach=True)
    until(lambda: shown_load(load)[0] >= 0.05)
    until(lambda: shown_load(load)[1:] == (2, 3))
    until(lambda: shown_load(no_load) == (0.0, 0, 1))
    until(lambda: run(idle, "cat", "/proc/loadavg") == no_load.read_text())
    assert "ead-only" in run(busy, "sh", "-c", "echo x >/proc/loadavg")

    # After a restart of nova-compute, the averages continue from their last values.
    averages.stop()
    before = shown_load(load)[0]
    again = load_average.Loads(state_folder, engine, ServerList(engine))
    request.addfinalizer(again.stop)
    again.start()
    until(lambda: shown_load(load)[0] != before)
    assert shown_load(load)[0] > before

    # After a restart of the server, the averages begin at zero.
    docker_client.stop(busy, timeout=0)
    engine.start_container(busy)
    until(lambda: shown_load(load) == (0.0, 0, 1))
