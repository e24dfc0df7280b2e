# SPDX-License-Identifier: Apache-2.0
"""nova-compute or the engine is killed during an operation, then restarted.

By default the tests kill at some points; with ``--every-point`` at all of them.
"""

import contextlib
import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
from nova import exception as nova_exception
from nova.compute import power_state, vm_states

from novadocker import exception
from tests.engine import crashing
from tests.engine.engines import dies_at
from tests.engine.hosts import ComputeHost
from tests.engine.servers import Nova, Server

SNAPSHOT = "5eed0000-0000-4000-8000-000000000002"
_SECONDS = 120

# The fork server runs no threads and has all modules, so its children start at once.
processes = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Case:
    """An operation, and the actions of Nova and its user after nova-compute was killed in it.

    :ivar prepare: brings a server into the state before the operation; None if there is none yet
    :ivar operation: runs in the process that is killed
    :ivar known: returns the server as Nova's database has it when nova-compute restarts and wires
        it; None for a server that was being built or deleted
    :ivar follow: completes the recovery; returns the server as it must be now, running
    :ivar points: some of the requests before which the process is killed
    """

    operation: crashing.Operation
    follow: crashing.Operation
    points: Sequence[int]
    prepare: crashing.Operation | None = None
    known: Callable[[Server], Server | None] = lambda server: server


def spawn(nova: Nova, server: Server) -> Server:
    return nova.spawn(server)


def destroy(nova: Nova, server: Server) -> None:
    nova.destroy(server)


def reboot(nova: Nova, server: Server) -> Server:
    nova.reboot(server, "SOFT")
    return server


def power_on(nova: Nova, server: Server) -> Server:
    nova.power_on(server)
    return server


def resize(nova: Nova, server: Server) -> Server:
    return nova.resize(server, "large")


def revert_resize(nova: Nova, server: Server) -> Server:
    return nova.revert_resize(replace(server, flavor="large", old_flavor=server.flavor))


def snapshot(nova: Nova, server: Server) -> Server:
    nova.snapshot(server, SNAPSHOT)
    return server


def unchanged(nova: Nova, server: Server) -> Server:
    assert nova.state(server) == power_state.RUNNING
    return server


def attach(nova: Nova, server: Server) -> Server:
    return nova.attach(server, 3)


def with_port(server: Server) -> Server:
    return replace(server, ports=(*server.ports, 3))


def detach(nova: Nova, server: Server) -> Server:
    return nova.detach(server, 2)


def rescue(nova: Nova, server: Server) -> Server:
    return nova.rescue(server)


def unrescue(nova: Nova, server: Server) -> Server:
    return nova.unrescue(server)


def forgotten(server: Server) -> None:
    return None


def power_off(nova: Nova, server: Server) -> Server:
    nova.power_off(server)
    return server


def pause(nova: Nova, server: Server) -> Server:
    nova.driver.pause(server.instance())
    return server


def unpause(nova: Nova, server: Server) -> Server:
    nova.driver.unpause(server.instance())
    return server


def rebooted(nova: Nova, server: Server) -> Server:
    """Reboot a server in the state ERROR, as its user would."""
    nova.reboot(server, "HARD")
    return server


CASES = {
    "spawn": Case(spawn, destroy, (4, 8, 11), known=forgotten),
    "destroy": Case(destroy, destroy, (2, 5), unchanged, forgotten),
    "reboot": Case(reboot, reboot, (3, 6, 9), unchanged),
    "reboot, then start": Case(reboot, power_on, (4,), unchanged),
    "resize": Case(resize, revert_resize, (2, 3), unchanged),
    "snapshot": Case(snapshot, unchanged, (3, 5), unchanged),
    "attach": Case(attach, unchanged, (2, 4), unchanged, with_port),
    "detach": Case(detach, detach, (2, 4), unchanged),
    "rescue, then start": Case(rescue, power_on, (8, 10, 12), unchanged),
    "unrescue": Case(unrescue, unrescue, (3, 6), rescue),
}

# nova-compute survives the engine, so Nova has the operation's results up to its failure.
ENGINE_CASES = {
    "spawn": Case(spawn, destroy, (4,)),
    "destroy": Case(destroy, destroy, (1,), unchanged),
    "reboot": Case(reboot, rebooted, (2, 4), unchanged),
    "power off": Case(power_off, rebooted, (3,), unchanged),
    "power on": Case(power_on, rebooted, (3,), power_off),
    "pause": Case(pause, rebooted, (2,), unchanged),
    "unpause": Case(unpause, rebooted, (3,), pause),
    "resize": Case(resize, rebooted, (3,), unchanged),
    "snapshot": Case(snapshot, unchanged, (3, 4), unchanged),
    "attach": Case(attach, unchanged, (1,), unchanged),
    "detach": Case(detach, detach, (1,), unchanged),
    "rescue": Case(rescue, rebooted, (11, 13), unchanged),
    "unrescue": Case(unrescue, unrescue, (6, 8), rescue),
}


@dataclass(frozen=True)
class Rig:
    """Runs operations on a host.

    :ivar root: the host's device of the volume that the servers boot from; empty without one
    """

    host: ComputeHost
    root: str = ""

    def run(
        self, operation: crashing.Operation, server: Server, known: Server | None, point: int = 0
    ) -> tuple[bool, Server | None]:
        """Start nova-compute in its own process and run an operation.

        :returns: True if the process was killed, and the operation's result
        """
        results, result = processes.Pipe(duplex=False)
        process = processes.Process(
            target=crashing.run,
            args=(operation, server, [known] if known else [], point, result),
            kwargs={
                "url": self.host.engine.url,
                "switch": self.host.switch.connection,
                "instances": self.host.instances,
                "glance": self.host.glance,
            },
        )
        with results:
            with result:
                process.start()
            process.join(_SECONDS)
            code = process.exitcode
            process.close()
            assert code in (0, crashing.KILLED)
            return code == crashing.KILLED, results.recv() if code == 0 else None

    def trial(self, case: Case, point: int) -> bool:
        """Kill nova-compute at a point of an operation; return False if it has no such point."""
        server = replace(self.host.new_server(ports=(1, 2)), root=self.root)
        with self._deleted_on_failure(server):
            if case.prepare:
                _, made = self.run(spawn, server, None)
                assert made is not None
                self.host.survey.mark(made)
                _, prepared = self.run(case.prepare, made, made)
                assert prepared is not None
                server = prepared
            killed, after = self.run(case.operation, server, case.prepare and server, point)
            if killed:
                known = case.known(server)
                _, after = self.run(case.follow, known or server, known)
                if after is not None:
                    self.host.survey.check_running(after)
                self.host.survey.check_nothing_else([after] if after else [])
            if after is not None:
                self.run(destroy, after, None)
            self.host.survey.check_nothing_else([])
            return killed

    def engine_trial(self, case: Case, point: int) -> bool:
        """Kill the engine at a point of an operation; return False if it has no such point."""
        server = replace(self.host.new_server(ports=(1, 2)), root=self.root)
        with self._deleted_on_failure(server):
            nova = self.host.start_nova()
            try:
                if case.prepare:
                    server = nova.spawn(server)
                    self.host.survey.mark(server)
                    prepared = case.prepare(nova, server)
                    assert prepared is not None
                    server = prepared
                after: Server | None = server
                with dies_at(self.host.engine, point) as died:
                    try:
                        # Some operations succeed without the engine.
                        after = case.operation(nova, server)
                    except (exception.EngineUnavailable, nova_exception.NovaException):
                        if not died():
                            raise
                if died():
                    self.host.engine.start()
                    nova.periodic()
                    after = case.follow(nova, after or server)
                    overlays = int(server.vm_state == vm_states.RESCUED or case.operation is rescue)
                    if after is not None:
                        self.host.survey.check_running(after)
                    self.host.survey.check_nothing_else([after] if after else [], overlays=overlays)
                    if overlays:
                        self.host.engine.kill()
                        self.host.engine.start()
                        nova.stop()
                        nova = self.host.start_nova([after] if after else [])
                if after is not None:
                    nova.destroy(after)
                self.host.survey.check_nothing_else([])
                return died()
            finally:
                nova.stop()

    @contextlib.contextmanager
    def _deleted_on_failure(self, server: Server) -> Iterator[None]:
        """Delete a server if the block fails, so that later tests find an empty host."""
        try:
            yield
        except BaseException:
            # The block may fail while the engine is dead, so it is started in any case.
            self.host.engine.kill()
            self.host.engine.start()
            nova = self.host.start_nova()
            nova.destroy(replace(server, ports=(*server.ports, 3)))
            nova.stop()
            raise


@pytest.fixture
def rig(compute_host: ComputeHost) -> Rig:
    processes.set_forkserver_preload([crashing.__name__, __name__])
    return Rig(compute_host)


def check_points(
    config: pytest.Config, case: Case, trial: Callable[[Case, int], bool], what: str
) -> None:
    """Try a case at its points, or with ``--every-point`` at all points."""
    every = config.getoption("--every-point")
    for point in itertools.count(1) if every else case.points:
        print(f"{what} before request {point}", flush=True)
        if not trial(case, point):
            assert every, "there are fewer requests than that"
            break


@pytest.mark.parametrize("name", CASES)
def test_killed_in_the_middle(rig: Rig, name: str, pytestconfig: pytest.Config) -> None:
    check_points(pytestconfig, CASES[name], rig.trial, f"{name}: killed")


@pytest.mark.parametrize("name", ENGINE_CASES)
def test_the_engine_dies_in_the_middle(rig: Rig, name: str, pytestconfig: pytest.Config) -> None:
    check_points(pytestconfig, ENGINE_CASES[name], rig.engine_trial, f"{name}: the engine dies")
