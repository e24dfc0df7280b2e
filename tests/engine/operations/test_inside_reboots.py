# SPDX-License-Identifier: Apache-2.0
"""Servers that reboot and power off from inside, by reboot(2) in their PID namespace."""

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from nova import objects
from nova.compute import power_state, vm_states
from nova.virt import event as virtevent

from novadocker.linux import openat
from tests.engine import servers
from tests.engine.hosts import ComputeHost
from tests.engine.servers import Nova, Server
from tests.waiting import until

STOPPED = virtevent.EVENT_LIFECYCLE_STOPPED
_WAITS = "sh -c 'while [ ! -e /go ]; do sleep 0.1; done; rm /go; reboot -f'"


@dataclass
class Machine:
    """A server, and the transitions that Nova gets of it."""

    host: ComputeHost
    nova: Nova
    server: Server
    transitions: "queue.SimpleQueue[int]"

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.host.client.inspect_container(self.server.name)["State"]
        return found

    @property
    def id(self) -> str:
        found: str = self.host.client.inspect_container(self.server.name)["Id"]
        return found

    def know(self, nova: Nova) -> None:
        """Make a driver read this server in place of Nova's database."""
        self.nova = nova
        instance = self.server.instance()
        nova.driver._services.read_instance = lambda _context, _uuid: instance

    def run(self, *command: str) -> None:
        """Run a command inside that may end the server."""
        call = self.host.client.exec_create(self.server.name, list(command))["Id"]
        self.host.client.exec_start(call, detach=True)

    def await_restart(self, started: str) -> None:
        """Wait until the server runs anew; it runs for Nova all the time."""

        def restarted() -> bool:
            assert self.nova.state(self.server) == power_state.RUNNING
            state = self.state
            return bool(state["Running"] and state["StartedAt"] != started)

        until(restarted)
        until(lambda: not self.nova.driver._inside_reboots._ended)
        while not self.transitions.empty():
            assert self.transitions.get() != STOPPED


def let_reboot(container_id: str, pid: int) -> None:
    """Create the file ``/go`` as root of a server, without the engine."""
    with openat.open_root(container_id, pid) as root:
        openat.replace_file(root, "/go", b"")


@pytest.fixture
def boot(compute_host: ComputeHost) -> Iterator[Callable[..., Machine]]:
    nova = compute_host.start_nova()
    made: list[Machine] = []
    transitions: queue.SimpleQueue[int] = queue.SimpleQueue()

    def listen(event: virtevent.LifecycleEvent) -> None:
        # The engine still has the deletions of other tests.
        if event.get_instance_uuid() in [machine.server.uuid for machine in made]:
            transitions.put(event.get_transition())

    nova.driver.register_event_listener(listen)

    def call(command: str, **fields: Any) -> Machine:
        properties = {"os_command_line": command}
        nova.image = objects.ImageMeta.from_dict({**servers.IMAGE, "properties": properties})
        server = replace(compute_host.new_server(**fields), vm_state=vm_states.ACTIVE)
        made.append(Machine(compute_host, nova, nova.spawn(server), transitions))
        made[-1].know(nova)
        return made[-1]

    yield call
    for machine in made:
        machine.nova.destroy(machine.server)
        machine.nova.stop()
    compute_host.survey.check_nothing_else([])


def test_busybox_init(boot: Callable[..., Machine], compute_host: ComputeHost) -> None:
    found = boot("init", flavor="capped", ports=(1,))
    compute_host.survey.mark(found.server)
    for _ in range(2):
        started = found.state["StartedAt"]
        found.run("reboot")
        found.await_restart(started)
        compute_host.survey.check_running(found.server)
    found.run("poweroff")
    until(lambda: not found.state["Running"])
    assert found.state["ExitCode"] == 130
    until(lambda: not found.transitions.empty() and found.transitions.get() == STOPPED)
    assert found.nova.state(found.server) == power_state.SHUTDOWN


def test_a_reboot_while_the_engine_is_away(boot: Callable[..., Machine]) -> None:
    found = boot(_WAITS)
    container, before = found.id, found.state
    found.host.engine.kill()
    let_reboot(container, before["Pid"])
    until(lambda: not Path(f"/proc/{before['Pid']}/exe").exists())
    found.host.engine.start()
    until(lambda: found.state["Running"] and found.state["StartedAt"] != before["StartedAt"])
    until(lambda: found.nova.state(found.server) == power_state.RUNNING)


def test_a_reboot_while_nova_compute_is_down(
    boot: Callable[..., Machine], compute_host: ComputeHost
) -> None:
    found = boot(_WAITS, flavor="capped", ports=(1,))
    compute_host.survey.mark(found.server)
    before = found.state
    found.nova.stop()
    let_reboot(found.id, before["Pid"])
    until(lambda: not found.state["Running"])
    found.know(Nova(compute_host.glance))
    found.nova.start([found.server])
    found.await_restart(before["StartedAt"])
    compute_host.survey.check_running(found.server)


def test_a_first_process_that_ends_like_a_reboot_again_and_again(
    boot: Callable[..., Machine],
) -> None:
    looped: list[str] = []
    found = boot("sh -c 'echo started; sleep 0.5; exit 129'")
    found.nova.driver._inside_reboots._looped = looped.append
    until(lambda: not found.transitions.empty() and found.transitions.get() == STOPPED)
    assert found.nova.state(found.server) == power_state.SHUTDOWN
    log = found.host.client.logs(found.server.name)
    # One start by Nova, and five by the driver.
    assert log.count(b"started") == 6
    assert looped == [found.server.uuid]
