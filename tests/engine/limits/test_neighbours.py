# SPDX-License-Identifier: Apache-2.0
"""A server that takes all resources it can get affects only itself."""

import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from novadocker.linux import cgroup
from novadocker.virt.docker.engine.client import Engine
from tests.engine import control_groups, machines
from tests.engine.machines import Machine
from tests.waiting import until

_SECONDS = 60
_HOG = "$x = 'x' x (256 << 20)"
# Each process forks until it fails, again and again.
_BOMB = "fork while 1"


@pytest.fixture(scope="module")
def client(engine_url: str) -> Iterator[docker.APIClient]:
    with machines.connected(engine_url) as found:
        yield found


@pytest.fixture(scope="module")
def neighbour(engine: Engine, client: docker.APIClient) -> Iterator[Machine]:
    with machines.machine(engine, client) as found:
        yield found


def test_fork_bomb(engine: Engine, client: docker.APIClient, neighbour: Machine) -> None:
    limits = replace(machines.LIMITS, pids=40, cpu_quota_us=100_000)
    with machines.machine(engine, client, limits=limits) as bomb:
        folder = control_groups.folder(bomb.pid, "pids")
        client.exec_start(client.exec_create(bomb.id, ["perl", "-e", _BOMB])["Id"], detach=True)
        until(lambda: (folder / "pids.current").read_text() == "40\n")
        until(lambda: int((folder / "pids.events").read_text().split()[1]) > 1000)
        subprocess.run(["true"], check=True, timeout=_SECONDS)
        assert neighbour.run("true")[0] == 0
        assert (folder / "pids.current").read_text() == "40\n"
        assert engine.inspect_container(bomb.id).status == "running"


def test_memory_hog(engine: Engine, client: docker.APIClient, neighbour: Machine) -> None:
    with machines.machine(engine, client) as hog:
        assert cgroup.read_oom_kills(hog.pid, hog.id) == 0
        told: list[str] = []
        label = f"org.openstack.nova.test={hog.name}"

        def watch() -> None:
            for event in engine.watch_events(label, ["oom"], 0, _SECONDS):
                told.append(event.name)
                return

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert hog.run("perl", "-e", _HOG)[0] == 137
        watcher.join(_SECONDS)
        assert told == [hog.name]
        assert cgroup.read_oom_kills(hog.pid, hog.id) == 1
        # The kernel did not kill the first process, because it does not allocate memory.
        assert engine.inspect_container(hog.id).status == "running"
        assert hog.run("true")[0] == 0
        assert cgroup.read_oom_kills(neighbour.pid, neighbour.id) == 0
        assert Path(f"/proc/{neighbour.pid}").exists()
