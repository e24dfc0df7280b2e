# SPDX-License-Identifier: Apache-2.0
"""A server's way to another host and back, over fakes of our own modules."""

from types import SimpleNamespace
from typing import Any

import pytest
from nova import exception as nova_exception
from nova.compute import power_state

from novadocker import exception
from novadocker.virt.docker import transfer as transfer_module
from tests.unit import fakes
from tests.unit.fakes import FakeEngine, FakeNetwork, FakeTransfer

DEST = "192.0.2.9"
AWAY = SimpleNamespace(source_compute="host1", dest_compute="host2")
MOVE = transfer_module.Move("0" * 32, fakes.IMAGE.id, ["/data"], False)


@pytest.fixture
def server(
    driver: Any, instance: Any, image_meta: Any, network_info: Any, engine: FakeEngine
) -> Any:
    driver.spawn(None, instance, image_meta, [], None, {}, network_info=network_info)
    instance.migration_context = None
    engine.calls.clear()
    return instance


@pytest.fixture
def leave(driver: Any, server: Any, network_info: Any) -> Any:
    def call() -> str:
        flavor = server.flavor
        return str(
            driver.migrate_disk_and_power_off(None, server, DEST, flavor, network_info, None, 60, 1)
        )

    return call


@pytest.fixture
def arrive(driver: Any, instance: Any, image_meta: Any, network_info: Any) -> Any:
    def call(move: transfer_module.Move = MOVE, power_on: bool = True) -> None:
        instance.migration_context = None
        driver.finish_migration(
            *(None, AWAY, instance, move.to_text(), network_info, image_meta, True, {}, None),
            power_on,
        )

    return call


def test_a_running_server_is_sent_twice(
    driver: Any,
    server: Any,
    leave: Any,
    transfer: FakeTransfer,
    network: FakeNetwork,
    engine: FakeEngine,
) -> None:
    move = transfer_module.read_move(leave())
    assert move == transfer_module.Move("0" * 32, "", ["/data"], False)
    assert transfer.steps == [f"session {DEST}", "send live", "send", "commit"]
    assert driver.get_info(server).state == power_state.SHUTDOWN
    # nothing of it is on the network, and all its data is there
    assert network.wired == set()
    assert network.ports == []
    assert engine.containers


def test_a_stopped_server_is_sent_once(
    driver: Any, server: Any, leave: Any, transfer: FakeTransfer
) -> None:
    driver.power_off(server)
    leave()
    assert transfer.steps == [f"session {DEST}", "send", "commit"]


@pytest.mark.parametrize(
    ("broken", "stopped"),
    [
        (f"session {DEST}", False),
        ("send live", False),
        ("send", False),
        ("commit", False),
        ("send", True),
        ("commit", True),
    ],
)
def test_what_can_not_be_sent_is_as_it_was(
    driver: Any, server: Any, leave: Any, transfer: FakeTransfer, broken: str, stopped: bool
) -> None:
    if stopped:
        driver.power_off(server)
    transfer.broken = broken
    with pytest.raises(nova_exception.InstanceFaultRollback, match="is broken"):
        leave()
    state = power_state.SHUTDOWN if stopped else power_state.RUNNING
    assert driver.get_info(server).state == state


def test_one_that_can_not_leave_the_switch_goes_on(
    driver: Any, server: Any, leave: Any, network: FakeNetwork
) -> None:
    network.unplug_failure = exception.PlugFailed(port_id="p", reason="the switch hangs")
    with pytest.raises(nova_exception.InstanceFaultRollback, match="the switch hangs"):
        leave()
    assert driver.get_info(server).state == power_state.RUNNING


@pytest.mark.parametrize("power_on", [True, False])
def test_arrival(
    driver: Any,
    instance: Any,
    arrive: Any,
    transfer: FakeTransfer,
    network: FakeNetwork,
    virtapi: Any,
    power_on: bool,
) -> None:
    arrive(power_on=power_on)
    assert transfer.steps == ["adopt"]
    state = power_state.RUNNING if power_on else power_state.SHUTDOWN
    assert driver.get_info(instance).state == state
    assert (instance.uuid in network.silent) is not power_on
    assert len(virtapi.awaited) == 1
    # what it had in /etc came along
    assert network.etc_files == {}


@pytest.mark.parametrize("broken", ["adopt", "start"])
def test_a_failed_arrival_leaves_nothing(
    arrive: Any, transfer: FakeTransfer, network: FakeNetwork, engine: FakeEngine, broken: str
) -> None:
    transfer.broken = broken
    if broken == "start":
        engine.exit_code = 3
    with pytest.raises(nova_exception.NovaException):
        arrive()
    assert transfer.steps[-1] == "discard"
    assert engine.containers == {}
    assert network.wired == set()


def test_confirmed(driver: Any, server: Any, leave: Any, network_info: Any, engine: Any) -> None:
    leave()
    for _ in range(2):
        driver.confirm_migration(None, AWAY, server, network_info)
    assert engine.containers == {}


def test_reverted(
    driver: Any, server: Any, leave: Any, network_info: Any, engine: FakeEngine, network: Any
) -> None:
    leave()
    engine.calls.clear()
    # as the manager calls it when it starts, and again
    for _ in range(2):
        driver.finish_revert_migration(None, server, network_info, AWAY, None, True)
    assert driver.get_info(server).state == power_state.RUNNING
    assert [call[0] for call in engine.calls] == ["start"]
    assert network.wired == {server.uuid}


def test_reverted_and_stopped_before(
    driver: Any, server: Any, leave: Any, network_info: Any, engine: FakeEngine
) -> None:
    driver.power_off(server)
    leave()
    driver.finish_revert_migration(None, server, network_info, AWAY, None, False)
    assert driver.get_info(server).state == power_state.SHUTDOWN


def test_a_word_of_another_release() -> None:
    text = MOVE.to_text().replace('"version": 1', '"version": 2')
    with pytest.raises(exception.ResizeRefused, match="another release"):
        transfer_module.read_move(text)


def test_what_a_cut_off_move_left_goes_with_the_server(
    driver: Any, server: Any, transfer: FakeTransfer, network: FakeNetwork, engine: FakeEngine
) -> None:
    assert driver.cleanup_lingering_instance_resources(server)
    assert transfer.steps == ["discard"]
    assert (engine.containers, network.wired, network.bound) == ({}, set(), {})
    # nothing is fine
    assert driver.cleanup_lingering_instance_resources(server)
