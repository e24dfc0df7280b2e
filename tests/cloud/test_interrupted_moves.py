# SPDX-License-Identifier: Apache-2.0
"""nova-compute or an engine is killed at a step of a move; then one copy runs, with its data.

By default, the tests cover the steps with the highest risk; ``--every-step`` covers all. A test
holds the move at a step by freezing a process that the step waits for, so that no test depends on
timing.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openstack.compute.v2.server import Server
from openstack.connection import Connection

from devcloud import supervise
from devcloud.settings import Settings
from novadocker.virt.docker.migration.transfer import SENT_AHEAD
from tests.cloud.guests import until
from tests.cloud.owners import allocated_from, engine_of, provider_of
from tests.cloud.servers import (
    Opened,
    Servers,
    address,
    fault,
    host_of,
    last_events,
    migrations,
    pings,
)
from tests.cloud.test_servers import ACTIVE

# The server writes its data once, prints its checksum at each start and ignores SIGTERM.
COMMAND = (
    "sh -c \"trap '' TERM; test -e /data || head -c 209715200 /dev/urandom >/data;"
    ' sha256sum /data; while :; do sleep 1; done"'
)


@dataclass(frozen=True)
class Move:
    """A move in progress.

    :ivar log: size of the log of the source's nova-compute before the move
    """

    cloud: Settings
    admin: Connection
    demo: Connection
    server: Server
    log: int

    def staged(self) -> bool:
        """Return True if the destination has staged data of the server."""
        with contextlib.closing(engine_of(self.cloud, self.cloud.hosts[1])) as engine:
            root = Path(engine.info()["DockerRootDir"])
        return any((root / "novadocker-staging").glob(f"{self.server.id}.*"))

    def sent_ahead(self) -> bool:
        """Return True if the destination has all data except for the final copy."""
        with (self.cloud.log / "nova-compute-host1.log").open(errors="replace") as log:
            log.seek(self.log)
            return SENT_AHEAD in log.read()

    def task(self) -> str | None:
        task: str | None = self.admin.compute.get_server(self.server.id).task_state
        return task


def runs(cloud: Settings, number: int, server: Server) -> bool | None:
    """Return True if a host's container of a server runs; None if the host has no container."""
    with contextlib.closing(engine_of(cloud, cloud.hosts[number])) as engine:
        for found in engine.containers(all=True):
            if found["Names"] == [f"/nova-{server.id}"]:
                return bool(found["State"] == "running")
    return None


def receiver() -> int:
    """Return the id of the process that receives the server on the destination."""

    def find() -> int:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                words = path.read_bytes().split(b"\0")
                if b"python" in words[0] and words[1].endswith(b"novadocker-receive"):
                    return int(path.parent.name)
        return 0

    return int(until(find))


@contextlib.contextmanager
def frozen(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


@contextlib.contextmanager
def at_pre_copy(move: Move) -> Iterator[None]:
    process = receiver()
    until(move.staged)
    # The server is being stopped at this moment at the latest.
    with frozen(process):
        yield


@contextlib.contextmanager
def at_final_copy(move: Move) -> Iterator[None]:
    process = receiver()
    # From this moment, the server has ten seconds to stop.
    until(move.sent_ahead)
    with frozen(process):
        until(lambda: runs(move.cloud, 0, move.server) is False)
        yield


@contextlib.contextmanager
def at_plug(move: Move) -> Iterator[None]:
    # The agent does not report to Neutron that the port is up.
    agent = move.cloud.network_agent(move.cloud.hosts[1])
    supervise.control(move.cloud, ["stop", agent])
    try:
        until(lambda: move.task() == "resize_finish" and runs(move.cloud, 1, move.server) is False)
        yield
    finally:
        supervise.control(move.cloud, ["start", agent])


@contextlib.contextmanager
def at_confirm(move: Move) -> Iterator[None]:
    finished(move)
    with frozen(supervise.process_id(move.cloud, "docker-host1")):
        move.demo.compute.confirm_server_resize(move.server)
        until(lambda: has_begun(move, "compute_confirm_resize"))
        yield


@contextlib.contextmanager
def at_removal(move: Move) -> Iterator[None]:
    finished(move)
    with frozen(supervise.process_id(move.cloud, "docker-host2")):
        move.demo.compute.revert_server_resize(move.server)
        until(lambda: has_begun(move, "compute_revert_resize"))
        yield


@contextlib.contextmanager
def at_return(move: Move) -> Iterator[None]:
    finished(move)
    with frozen(supervise.process_id(move.cloud, "docker-host1")):
        move.demo.compute.revert_server_resize(move.server)
        until(lambda: has_begun(move, "compute_finish_revert_resize"))
        yield


def has_begun(move: Move, event: str) -> bool:
    """Return True if the last action has this event, so a host's nova-compute has begun it."""
    return any(found["event"] == event for found in last_events(move.admin, move.server))


def finished(move: Move) -> None:
    def done() -> bool:
        now = move.admin.compute.get_server(move.server.id)
        assert now.status != "ERROR", fault(now)
        return bool(now.status == "VERIFY_RESIZE" and now.task_state is None)

    until(done, 120)


def goes_on(move: Move) -> int:
    """Confirm the move, which finishes without any help; return the host's index."""
    finished(move)
    move.demo.compute.confirm_server_resize(move.server)
    return 1


def stays(move: Move) -> int:
    """Do nothing: Nova has the server on its old host; return the host's index."""
    return 0


def confirmed_again(move: Move) -> int:
    """Confirm the move again, because the first request was lost; return the host's index."""
    until(lambda: migrations(move.admin, move.server)[0] == "finished", 120)
    return goes_on(move)


def comes_back(move: Move) -> int:
    """Wait until the revert has finished without any help; return the host's index."""
    until(lambda: move.task() is None, 120)
    return 0


def ends(move: Move) -> int:
    """Wait for the end of the action, then reboot the server if it failed; return the host's index.

    The action either fails, whereupon Nova advises a hard reboot, or reaches the restarted engine.
    """
    until(lambda: move.task() is None, 120)
    server = move.admin.compute.get_server(move.server.id)
    if server.status == "ERROR":
        move.admin.compute.reboot_server(server, "HARD")
    return [host.name for host in move.cloud.hosts].index(host_of(move.admin, server))


@dataclass(frozen=True)
class Case:
    """A step of a move, the program that is killed at it, and the server's recovery.

    :ivar killed: the program; None makes the step itself fail
    :ivar follow: completes the recovery and returns the index of the server's host
    """

    held: Callable[[Move], AbstractContextManager[None]]
    killed: str | None
    follow: Callable[[Move], int]


FEW = {
    "final copy, source nova-compute": Case(at_final_copy, "nova-compute-host1", stays),
    "plug, destination nova-compute": Case(at_plug, "nova-compute-host2", goes_on),
    "removal, destination nova-compute": Case(at_removal, "nova-compute-host2", comes_back),
}
MORE = {
    "pre-copy, source nova-compute": Case(at_pre_copy, "nova-compute-host1", stays),
    "pre-copy, destination nova-compute": Case(at_pre_copy, "nova-compute-host2", goes_on),
    "pre-copy, source engine": Case(at_pre_copy, "docker-host1", goes_on),
    "pre-copy, destination engine": Case(at_pre_copy, "docker-host2", goes_on),
    "plug, destination engine": Case(at_plug, "docker-host2", goes_on),
    "confirm, source nova-compute": Case(at_confirm, "nova-compute-host1", confirmed_again),
    "removal, destination engine": Case(at_removal, "docker-host2", ends),
    "return, source nova-compute": Case(at_return, "nova-compute-host1", comes_back),
    "return, source engine": Case(at_return, "docker-host1", ends),
}


@pytest.fixture
def begin(
    servers: Servers,
    demo: Connection,
    admin: Connection,
    cloud: Settings,
    opened: Opened,
    image: Callable[..., str],
    busybox: Path,
) -> Iterator[Callable[[], Move]]:
    """Yield a function that begins to move a server from the first host to the second."""
    with contextlib.ExitStack() as stack:

        def call() -> Move:
            name = image(busybox, os_command_line=COMMAND)
            server = servers.create("moved", image=name, flavor="d1.small")
            assert server.status == "ACTIVE", fault(server)
            until(lambda: told(demo, server))
            stack.enter_context(opened("host1", "host2"))
            log = (cloud.log / "nova-compute-host1.log").stat().st_size
            admin.compute.migrate_server(server.id)
            return Move(cloud, admin, demo, server, log)

        yield call


def told(demo: Connection, server: Server) -> str:
    """Return the checksum that the server printed at its last start."""
    output = demo.compute.get_server_console_output(server)["output"]
    return str(output).strip().rpartition("\n")[2]


@pytest.mark.parametrize("name", [*FEW, *MORE])
def test_one_copy_runs_in_the_end(
    begin: Callable[[], Move],
    servers: Servers,
    tenant_network: str,
    name: str,
    pytestconfig: Any,
) -> None:
    case = FEW.get(name) or MORE[name]
    if name in MORE and not pytestconfig.getoption("--every-step"):
        pytest.skip("runs with --every-step only")
    move = begin()
    checksum = told(move.demo, move.server)
    with case.held(move):
        if case.killed:
            before = supervise.process_id(move.cloud, case.killed)
            os.kill(before, signal.SIGKILL)
            until(lambda: supervise.process_id(move.cloud, case.killed or "") not in (0, before))
    place = case.follow(move)
    server = servers.wait(move.server, ACTIVE)
    host = f"host{place + 1}"
    assert host_of(move.admin, server) == host
    assert allocated_from(move.admin, server) == {provider_of(move.admin, host)}
    until(lambda: pings(tenant_network, address(server)))
    until(lambda: told(move.demo, server) == checksum)
    # The other host has no container or a stopped one, which it deletes with the server.
    assert runs(move.cloud, place, server)
    assert not runs(move.cloud, 1 - place, server)
    until(lambda: not move.staged())
