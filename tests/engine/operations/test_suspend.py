# SPDX-License-Identifier: Apache-2.0
"""Servers that are suspended to the disk by CRIU and resumed."""

import itertools
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from nova import conf
from nova import exception as nova_exception
from nova.compute import power_state, vm_states

from novadocker.linux import cgroup
from novadocker.privsep.guest import checkpoint
from novadocker.virt.docker.migration import nova_records
from tests import slowness
from tests.engine import packages, servers
from tests.engine.hosts import ComputeHost
from tests.engine.servers import Server


@pytest.fixture(scope="session")
def criu(home_network: str) -> str:
    return packages.criu(home_network)


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """Yield what the tenant reads in the events."""
    found: list[str] = []
    with mock.patch.object(nova_records, "note", lambda *arguments: found.append(arguments[3])):
        yield found


@pytest.fixture
def host(compute_host: ComputeHost, criu: str) -> Iterator[ComputeHost]:
    conf.CONF.set_override("criu", criu, group="docker")
    yield compute_host
    conf.CONF.clear_override("criu", group="docker")


def run(host: ComputeHost, server: Server, script: str) -> str:
    call = host.client.exec_create(server.name, ["sh", "-c", script])["Id"]
    output: bytes = host.client.exec_start(call)
    return output.decode().strip()


def state(host: ComputeHost, server: Server) -> dict[str, Any]:
    found: dict[str, Any] = host.client.inspect_container(server.name)["State"]
    return found


def folder(host: ComputeHost, server: Server) -> Path:
    """Return the directory of a server's images."""
    container = host.client.inspect_container(server.name)["Id"]
    return checkpoint.FOLDER / servers.HOST / server.uuid / container


def images(server: Server) -> list[str]:
    """Return the suffixes of the directories of a server's images."""
    above = checkpoint.FOLDER / servers.HOST / server.uuid
    return sorted(entry.name[64:] for entry in above.iterdir()) if above.exists() else []


def test_a_suspended_server_has_no_memory_and_comes_back(
    host: ComputeHost, notes: list[str]
) -> None:
    nova = host.start_nova()
    server = nova.spawn(host.new_server("disk", (1,)))
    host.survey.mark(server)
    # /dev/shm is a tmpfs, and the first process has its own memory.
    run(host, server, "echo kept >/dev/shm/file; echo kept >/file")
    before = state(host, server)
    group = next(
        iter(
            cgroup.groups(
                before["Pid"], host.client.inspect_container(server.name)["Id"]
            ).directories.values()
        )
    )
    nova.suspend(server)
    assert notes == []
    assert nova.state(server) == power_state.SHUTDOWN
    assert not Path(f"/proc/{before['Pid']}").exists()
    assert not group.exists()
    assert images(server) == [""]
    assert (checkpoint.FOLDER / servers.HOST / server.uuid).stat().st_mode & 0o777 == 0o700
    host.survey.check_stopped(server)

    nova.resume(server)
    assert nova.state(server) == power_state.RUNNING
    assert run(host, server, "cat /dev/shm/file /file") == "kept\nkept"
    host.survey.check_running(server)
    assert images(server) == []
    # The next start is one of its own.
    nova.reboot(server)
    assert run(host, server, "cat /dev/shm/file; cat /file").splitlines()[-1] == "kept"
    assert "kept" not in run(host, server, "cat /dev/shm/file 2>/dev/null")
    nova.destroy(server)
    host.survey.check_nothing_else([])
    nova.stop()


@pytest.mark.parametrize("damage", ["a lost file", "another server's"])
def test_damaged_images_are_kept(host: ComputeHost, notes: list[str], damage: str) -> None:
    nova = host.start_nova()
    made = [nova.spawn(host.new_server("disk")) for _ in range(2)]
    for server in made:
        run(host, server, "echo kept >/dev/shm/file")
        nova.suspend(server)
    assert notes == []
    (first, second) = (folder(host, server) for server in made)
    kept = {path.name: path for path in first.iterdir()}
    aside = first.with_name("aside")
    if damage == "a lost file":
        kept["inventory.img"].rename(aside)
    else:
        first.rename(aside)
        shutil.copytree(second, first)
    reason = "can't be restored" if damage == "a lost file" else "those of another container"
    with pytest.raises(nova_exception.InstanceFaultRollback, match=reason):
        nova.resume(made[0])
    assert nova.state(made[0]) == power_state.SHUTDOWN
    assert images(made[0])[0] == ""
    if damage == "a lost file":
        aside.rename(kept["inventory.img"])
    else:
        shutil.rmtree(first)
        aside.rename(first)
    for server in made:
        nova.resume(server)
        assert run(host, server, "cat /dev/shm/file") == "kept"
        nova.destroy(server)
        assert images(server) == []
    nova.stop()


def test_a_host_reboots(host: ComputeHost, notes: list[str], state_folder: Path) -> None:
    nova = host.start_nova()
    server = nova.spawn(host.new_server("disk", (1,)))
    host.survey.mark(server)
    run(host, server, "echo kept >/dev/shm/file")
    nova.suspend(server)
    nova.stop()
    host.lose_power(state_folder)
    host.return_power()
    nova = host.start_nova([replace(server, vm_state=vm_states.SUSPENDED)])
    host.survey.check_stopped(server)
    nova.resume(server)
    assert run(host, server, "cat /dev/shm/file") == "kept"
    host.survey.check_running(server)
    nova.destroy(server)
    host.survey.check_nothing_else([])
    nova.stop()


# A child of the first process answers on a port, so that CRIU sees its connections.
_ECHO = (
    "setsid nc -ll -p 7777 -e cat </dev/null >/dev/null 2>&1 & "
    "for i in $(seq 100); do netstat -ltn | grep -q :7777 && break; sleep 0.1; done"
)


@contextmanager
def connected(address: str) -> Iterator[Callable[[], None]]:
    """Yield a function that checks that a TCP connection to a server echoes."""
    subprocess.run(["ip", "address", "add", "10.7.255.1/16", "dev", "br-int"], check=True)
    subprocess.run(["ip", "link", "set", "br-int", "up"], check=True)
    connection = socket.create_connection((address, 7777), 30 * slowness.FACTOR)
    numbers = itertools.count()

    def check() -> None:
        line = f"{next(numbers)}\n".encode()
        connection.sendall(line)
        assert connection.recv(64) == line

    try:
        yield check
    finally:
        connection.close()
        subprocess.run(["ip", "address", "flush", "dev", "br-int"], check=True)


def test_open_connections_stay_in_ram(host: ComputeHost, notes: list[str]) -> None:
    nova = host.start_nova()
    server = nova.spawn(host.new_server("disk", (1,)))
    run(host, server, _ECHO)
    with connected("10.7.0.1") as check:
        check()
        nova.suspend(server)
        assert notes == ["it has open TCP connections"]
        assert nova.state(server) == power_state.PAUSED
        assert images(server) == []
        nova.resume(server)
        check()
    nova.destroy(server)
    assert images(server) == []
    nova.stop()


def test_a_process_from_outside_stays_in_ram(host: ComputeHost, notes: list[str]) -> None:
    nova = host.start_nova()
    server = nova.spawn(host.new_server("disk", (1,)))
    # CRIU would leave this process out.
    call = host.client.exec_create(server.name, ["sleep", "1d"])["Id"]
    host.client.exec_start(call, detach=True)
    nova.suspend(server)
    assert "was started from outside (docker exec)" in notes[0]
    assert nova.state(server) == power_state.PAUSED
    nova.resume(server)
    assert nova.state(server) == power_state.RUNNING
    nova.destroy(server)
    assert images(server) == []
    nova.stop()
