# SPDX-License-Identifier: Apache-2.0
"""nova-compute dies before each of an operation's requests and is restarted; on fakes.

The engine tests do the same on a real engine, at some of the requests only.
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
from nova.compute import vm_states

from novadocker.virt.docker.containers.servers import ServerList
from novadocker.virt.docker.driver import DockerDriver
from novadocker.virt.docker.migration.disk_info import Move
from novadocker.virt.docker.operations.collaborators import Collaborators
from tests.unit import fakes

HOST = "host1"
AWAY = SimpleNamespace(source_compute=HOST, dest_compute="host2", cross_cell_move=False)
HERE = SimpleNamespace(source_compute=HOST, dest_compute=HOST, cross_cell_move=False)
MOVE = Move("0" * 32, fakes.IMAGE.id, ["/data"], False)


class Dead(BaseException):
    """The process is dead, so none of its further calls has an effect."""


class Life:
    """Ends before a request; ``left`` is the number of remaining requests, None for any number."""

    left: int | None = None

    def request(self) -> None:
        if self.left is not None:
            if self.left == 0:
                raise Dead
            self.left -= 1


class Mortal:
    """Forwards each call to a fake while the process is alive."""

    def __init__(self, fake: Any, life: Life) -> None:
        self._fake = fake
        self._life = life

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._fake, name)
        if not callable(found) or isinstance(found, type):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self._life.request()
            return found(*arguments, **options)

        return call


@dataclass
class World:
    """The state that survives nova-compute, and Nova's records."""

    host: fakes.FakeHost
    collaborators: Collaborators
    instance: Any
    image_meta: Any
    ports: Any
    life: Life

    def driver(self) -> DockerDriver:
        """Start nova-compute and return its driver."""
        servers = ServerList(self.collaborators.engine)
        collaborators = replace(self.collaborators, server_list=servers)
        found = DockerDriver(fakes.FakeVirtAPI(), collaborators)
        found.init_host(HOST)
        return found

    def spawn(self, driver: Any) -> None:
        driver.spawn(None, self.instance, self.image_meta, [], None, {}, network_info=self.ports)

    def states(self) -> dict[str, str]:
        return {c.name: c.status for c in self.host.engine.containers.values()}


@pytest.fixture
def world(fake_host: fakes.FakeHost, instance: Any, image_meta: Any, network_info: Any) -> World:
    life = Life()
    instance.config_drive = "True"
    instance.migration_context = None
    instance.old_flavor = copy.deepcopy(instance.flavor)
    mortal_network = Mortal(fake_host.network, life)
    mortal_enforcement = Mortal(fake_host.enforcement, life)
    fake_host.drives.content = ({"a": b"b"}, b"")
    collaborators = replace(
        fake_host.collaborators(),
        engine=Mortal(fake_host.engine, life),
        network=mortal_network,
        namespaces=mortal_network,
        runtime=mortal_network,
        drives=Mortal(fake_host.drives, life),
        enforcement=lambda _info: mortal_enforcement,
        transfer=Mortal(fake_host.transfer, life),
    )
    return World(fake_host, collaborators, instance, image_meta, network_info, life)


Step = Callable[[Any, World], None]


def spawn(driver: Any, world: World) -> None:
    world.spawn(driver)


def destroy(driver: Any, world: World) -> None:
    driver.destroy(None, world.instance, world.ports)


def plug(driver: Any, world: World) -> None:
    driver.plug_vifs(world.instance, world.ports)


def power_on(driver: Any, world: World) -> None:
    plug(driver, world)
    driver.power_on(None, world.instance, world.ports)


def reboot(driver: Any, world: World) -> None:
    driver.reboot(None, world.instance, world.ports, "SOFT")


def resize(driver: Any, world: World) -> None:
    address = driver.get_host_ip_addr()
    flavor = copy.deepcopy(world.instance.flavor)
    flavor.memory_mb *= 2
    driver.migrate_disk_and_power_off(None, world.instance, address, flavor, world.ports)


def revert_resize(driver: Any, world: World) -> None:
    plug(driver, world)
    driver.finish_revert_migration(None, world.instance, world.ports, HERE)


def leave(driver: Any, world: World) -> None:
    flavor = world.instance.flavor
    driver.migrate_disk_and_power_off(None, world.instance, "192.0.2.9", flavor, world.ports)


def revert_move(driver: Any, world: World) -> None:
    plug(driver, world)
    driver.finish_revert_migration(None, world.instance, world.ports, AWAY)


def arrive(driver: Any, world: World) -> None:
    driver.finish_migration(
        *(None, AWAY, world.instance, MOVE.to_text(), world.ports, world.image_meta, True, {})
    )


def clean_up(driver: Any, world: World) -> None:
    driver.cleanup_lingering_instance_resources(world.instance)


def rescue(driver: Any, world: World) -> None:
    driver.rescue(None, world.instance, world.ports, world.image_meta, "secret", None, None)


def rescued(driver: Any, world: World) -> None:
    spawn(driver, world)
    rescue(driver, world)
    world.instance.vm_state = vm_states.RESCUED


def unrescue(driver: Any, world: World) -> None:
    driver.unrescue(None, world.instance)


def unrescue_again(driver: Any, world: World) -> None:
    plug(driver, world)
    unrescue(driver, world)
    world.instance.vm_state = vm_states.ACTIVE


def nothing(driver: Any, world: World) -> None:
    pass


# The operation: its preparation, and the action of Nova or its user after the restart; True if the
# server must run then, False if it must be deleted.
CASES: dict[str, tuple[Step, Step, Step, bool]] = {
    "spawn": (nothing, spawn, destroy, False),
    "destroy": (spawn, destroy, destroy, False),
    "reboot": (spawn, reboot, power_on, True),
    "reboot twice": (spawn, reboot, reboot, True),
    "resize": (spawn, resize, revert_resize, True),
    "leave": (spawn, leave, revert_move, True),
    "arrive": (nothing, arrive, clean_up, False),
    "rescue": (spawn, rescue, power_on, True),
    "unrescue": (rescued, unrescue, unrescue_again, True),
}


@pytest.mark.parametrize("name", CASES)
def test_killed_before_each_request(world: World, name: str) -> None:
    before, operation, after, runs = CASES[name]
    for left in itertools.count():
        driver = world.driver()
        before(driver, world)
        world.life.left = left
        try:
            operation(driver, world)
        except Dead:
            finished = False
        else:
            finished = True
        world.life.left = None
        driver.cleanup_host(HOST)
        driver = world.driver()
        if not finished:
            after(driver, world)
            container = f"nova-{world.instance.uuid}"
            assert world.states() == ({container: "running"} if runs else {}), left
            if runs:
                assert world.host.network.wired == {world.instance.uuid}
                assert world.host.network.silent == set()
                assert world.host.enforcement.kept[world.instance.uuid].memory_bytes == 256 << 20
                assert world.host.drives.written.keys() == {world.instance.uuid}
        world.instance.vm_state = vm_states.ACTIVE
        destroy(driver, world)
        assert world.states() == {}, left
        assert world.host.network.wired == set(), left
        assert world.host.network.ports == [], left
        assert world.host.network.bound == {}, left
        assert world.host.drives.written == {}, left
        driver.cleanup_host(HOST)
        if finished:
            assert left > 2
            return
