# SPDX-License-Identifier: Apache-2.0
"""A random walk of operations on servers, with a check after each step."""

import random
import subprocess
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
from nova import exception as nova_exception
from nova.compute import power_state, vm_states

from novadocker import exception
from tests.engine.engines import dies_at
from tests.engine.hosts import ComputeHost
from tests.engine.servers import Server
from tests.engine.survey import LIMITS
from tests.waiting import until

_MOST_SERVERS = 4
_MOST_PORTS = 3
_AWAY = (exception.EngineUnavailable, exception.EngineError)

_POWER_STATES = {
    "running": power_state.RUNNING,
    "paused": power_state.PAUSED,
    "stopped": power_state.SHUTDOWN,
}


@dataclass
class Guest:
    """A server and its expected state."""

    server: Server
    state: str = "running"

    @property
    def rescued(self) -> bool:
        return self.server.vm_state == vm_states.RESCUED


class Walk:
    """Runs the steps that a seed selects, on one host."""

    def __init__(self, seed: int, host: ComputeHost) -> None:
        self._random = random.Random(seed)
        self._host = host
        self._engine = host.engine
        self._client = host.client
        self._survey = host.survey
        self._numbers = iter(range(1, 1 << 16))
        self._guests: list[Guest] = []
        # The number of rescues during which the engine died.
        self._overlays = 0
        self._nova = host.start_nova()
        # name: weight of the choice, and its condition
        self._of_guest: Mapping[str, tuple[int, Callable[[Guest], bool]]] = {
            "power_off": (4, lambda guest: guest.state == "running" and not guest.rescued),
            "power_on": (8, lambda guest: guest.state == "stopped" and not guest.rescued),
            "reboot": (4, lambda guest: not guest.rescued),
            "pause": (3, lambda guest: guest.state == "running" and not guest.rescued),
            "unpause": (8, lambda guest: guest.state == "paused"),
            "attach": (3, lambda guest: len(guest.server.ports) < _MOST_PORTS),
            "detach": (3, lambda guest: bool(guest.server.ports)),
            "resize": (4, lambda guest: guest.state != "paused" and not guest.rescued),
            "snapshot": (1, lambda guest: not guest.rescued),
            "rescue": (1, lambda guest: guest.state != "paused" and not guest.rescued),
            "unrescue": (8, lambda guest: guest.rescued),
            "destroy": (2, lambda guest: True),
            # The next steps happen behind Nova's back.
            "die": (2, lambda guest: guest.state == "running" and not guest.rescued),
            "start_it": (1, lambda guest: guest.state == "stopped" and not guest.rescued),
            "pause_it": (1, lambda guest: guest.state == "running" and not guest.rescued),
            "update_it": (1, lambda guest: guest.state == "running" and not guest.rescued),
            "cut_off": (1, lambda guest: bool(guest.server.ports) and guest.state == "running"),
            "rename_it": (1, lambda guest: True),
            "remove_it": (1, lambda guest: not guest.rescued),
            "break_off": (1, lambda guest: guest.state == "running" and not guest.rescued),
        }
        self._of_host = {
            "spawn": 6,
            "new_nova": 1,
            "kill_engine": 1,
            "lose_engine": 1,
            "restart_switch": 1,
        }

    def step(self, tell: Callable[[str], None]) -> None:
        """Select and announce a step, run it, and check everything."""
        choices: list[tuple[int, str, Guest | None]] = [
            (weight, name, None)
            for name, weight in self._of_host.items()
            if name != "spawn" or len(self._guests) < _MOST_SERVERS
        ]
        choices += [
            (weight, name, guest)
            for guest in self._guests
            for name, (weight, possible) in self._of_guest.items()
            if possible(guest)
        ]
        ((_, name, guest),) = self._random.choices(choices, [choice[0] for choice in choices])
        if guest is None:
            tell(name)
            getattr(self, f"_{name}")()
        else:
            tell(f"{name} {guest.server.uuid}, {guest.state} {guest.server.vm_state}")
            getattr(self, f"_{name}")(guest)
        self._check()

    def end(self) -> None:
        """Destroy all servers and check that nothing remains."""
        while self._guests:
            self._destroy(self._guests[-1])
            self._check()
        self._kill_engine()
        self._new_nova()
        self._overlays = 0
        self._check()
        self._nova.stop()

    def _check(self) -> None:
        """Check all servers and objects."""
        self._survey.check_nothing_else(
            (guest.server for guest in self._guests), overlays=self._overlays
        )
        for guest in self._guests:
            assert self._nova.state(guest.server) == _POWER_STATES[guest.state]
            if guest.state == "stopped":
                self._survey.check_stopped(guest.server)
            else:
                self._survey.check_running(guest.server, silent=guest.state == "paused")

    # -- Nova's requests --------------------------------------------------------------------------

    def _spawn(self) -> None:
        ports = tuple(next(self._numbers) for _ in range(self._random.randint(0, 2)))
        server = self._host.new_server(self._any_flavor(), ports)
        guest = Guest(self._nova.spawn(server))
        self._guests.append(guest)
        self._survey.mark(guest.server)

    def _destroy(self, guest: Guest) -> None:
        self._nova.destroy(guest.server)
        self._guests.remove(guest)

    def _power_off(self, guest: Guest) -> None:
        self._nova.power_off(guest.server)
        guest.state = "stopped"

    def _power_on(self, guest: Guest) -> None:
        self._nova.power_on(guest.server)
        guest.state = "running"

    def _reboot(self, guest: Guest) -> None:
        self._nova.reboot(guest.server, self._random.choice(["SOFT", "HARD"]))
        guest.state = "running"

    def _pause(self, guest: Guest) -> None:
        self._nova.driver.pause(guest.server.instance())
        guest.state = "paused"

    def _unpause(self, guest: Guest) -> None:
        self._nova.driver.unpause(guest.server.instance())
        guest.state = "running"

    def _attach(self, guest: Guest) -> None:
        guest.server = self._nova.attach(guest.server, next(self._numbers))

    def _detach(self, guest: Guest) -> None:
        guest.server = self._nova.detach(guest.server, self._random.choice(guest.server.ports))

    def _resize(self, guest: Guest) -> None:
        resized = self._nova.resize(guest.server, self._any_flavor())
        if self._random.choice(["confirm", "revert"]) == "confirm":
            guest.server = self._nova.confirm_resize(resized)
        else:
            guest.server = self._nova.revert_resize(resized, power_on=guest.state != "stopped")

    def _snapshot(self, guest: Guest) -> None:
        image_id = str(uuid.uuid4())
        self._nova.snapshot(guest.server, image_id)
        self._forget_image(image_id)

    def _forget_image(self, image_id: str) -> None:
        (self._nova.glance.folder / image_id).unlink(missing_ok=True)
        self._nova.glance.delete(None, image_id)

    def _rescue(self, guest: Guest) -> None:
        guest.server = self._nova.rescue(guest.server)
        guest.state = "running"

    def _unrescue(self, guest: Guest) -> None:
        guest.server = self._nova.unrescue(guest.server)
        guest.state = "running"

    # -- others' actions --------------------------------------------------------------------------

    def _die(self, guest: Guest) -> None:
        """Kill the first process; Nova learns the state and stops the server."""
        self._client.kill(guest.server.name)
        self._client.wait(guest.server.name, timeout=60)
        assert self._nova.state(guest.server) == power_state.SHUTDOWN
        self._power_off(guest)

    def _start_it(self, guest: Guest) -> None:
        """Start the container behind Nova's back; Nova finds it running and stops it."""
        self._client.start(guest.server.name)
        assert self._nova.state(guest.server) == power_state.RUNNING
        self._power_off(guest)

    def _pause_it(self, guest: Guest) -> None:
        self._client.pause(guest.server.name)
        assert self._nova.state(guest.server) == power_state.PAUSED
        self._reboot(guest)

    def _update_it(self, guest: Guest) -> None:
        """Change the limits; the next periodic task restores them."""
        self._client.update_container(guest.server.name, cpu_quota=12_000, cpu_period=100_000)
        self._nova.periodic()

    def _cut_off(self, guest: Guest) -> None:
        """Delete a network device; the next start of nova-compute wires it again."""
        device = self._random.choice(guest.server.network_info)["devname"]
        subprocess.run(["ip", "link", "delete", device], check=True)
        self._new_nova()

    def _rename_it(self, guest: Guest) -> None:
        """Rename the container: its instance does not exist, instead of being stopped."""
        self._client.rename(guest.server.name, f"{guest.server.name}-away")
        with pytest.raises(nova_exception.InstanceNotFound):
            self._nova.state(guest.server)
        self._client.rename(f"{guest.server.name}-away", guest.server.name)

    def _remove_it(self, guest: Guest) -> None:
        self._client.remove_container(guest.server.name, force=True, v=True)
        until(lambda: self._nova.driver._services.server_list.was_deleted(guest.server.uuid))
        assert self._nova.state(guest.server) == power_state.SHUTDOWN
        self._destroy(guest)

    def _new_nova(self) -> None:
        """Restart nova-compute."""
        self._nova.stop()
        self._nova = self._host.start_nova([guest.server for guest in self._guests])

    def _restart_switch(self) -> None:
        """Restart the switch, which drops ports' rates; the next periodic task restores them."""
        self._host.switch.restart_switching()
        self._nova.periodic()

    def _kill_engine(self) -> None:
        """Kill and restart the engine; with live-restore, the servers continue to run."""
        self._engine.kill()
        self._start_engine()

    def _start_engine(self) -> None:
        self._engine.start()
        self._overlays += sum(guest.rescued for guest in self._guests)
        self._nova.periodic()

    def _break_off(self, guest: Guest) -> None:
        """Kill the engine during an operation; the user retries after its restart."""
        image_id = str(uuid.uuid4())
        operation = self._random.choice(
            [
                self._nova.reboot,
                self._nova.power_off,
                self._nova.destroy,
                lambda server: self._nova.snapshot(server, image_id),
            ]
        )
        with dies_at(self._engine, self._random.randint(1, 6)) as died:
            try:
                operation(guest.server)
            except (exception.EngineUnavailable, nova_exception.NovaException):
                if not died():
                    raise
        self._forget_image(image_id)
        if died():
            self._start_engine()
        (self._destroy if operation == self._nova.destroy else self._reboot)(guest)

    def _lose_engine(self) -> None:
        """Kill the engine: operations and state requests fail until it restarts."""
        self._engine.kill()
        try:
            for guest in self._guests:
                with pytest.raises(_AWAY):
                    self._nova.state(guest.server)
            if self._guests:
                guest = self._random.choice(self._guests)
                operation = self._random.choice(
                    [self._nova.reboot, self._nova.power_off, self._nova.destroy]
                )
                with pytest.raises(_AWAY):
                    operation(guest.server)
            with pytest.raises(_AWAY):
                self._nova.spawn(self._host.new_server(ports=(next(self._numbers),)))
        finally:
            self._start_engine()

    def _any_flavor(self) -> str:
        return self._random.choice(sorted(LIMITS))
