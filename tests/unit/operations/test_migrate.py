# SPDX-License-Identifier: Apache-2.0
"""A server's move to another host and back, on fakes of this project's own modules."""

import contextlib
import datetime
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nova import exception as nova_exception
from nova import objects
from nova.compute import power_state, task_states, vm_states
from oslo_privsep import comm

from novadocker import exception
from novadocker.virt.docker.driver import DockerDriver
from novadocker.virt.docker.migration import nova_records
from novadocker.virt.docker.migration import transfer as transfer_module
from novadocker.virt.docker.migration.disk_info import Move, read_move
from novadocker.virt.docker.volumes.volume import Volume
from tests.unit import fakes
from tests.unit.fakes import FakeEngine, FakeHost, FakeNetwork, FakeTransfer
from tests.unit.operations.volumes import FIRST, block_devices, connection

DEST = "192.0.2.9"
AWAY = SimpleNamespace(source_compute="host1", dest_compute="host2", cross_cell_move=False)
FAR_AWAY = SimpleNamespace(source_compute="host1", dest_compute="host3", cross_cell_move=True)
BDMS = SimpleNamespace(root_bdm=lambda: SimpleNamespace(is_volume=False))
MOVE = Move("0" * 32, fakes.IMAGE.id, ["/data"], False)


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
    def call(move: Move = MOVE, power_on: bool = True) -> None:
        instance.migration_context = None
        driver.finish_migration(
            *(None, AWAY, instance, move.to_text(), network_info, image_meta, True, {}, None),
            power_on,
        )

    return call


def test_a_running_server_is_sent_ahead(
    driver: Any,
    server: Any,
    leave: Any,
    transfer: FakeTransfer,
    network: FakeNetwork,
    engine: FakeEngine,
) -> None:
    move = read_move(leave())
    assert move == Move("0" * 32, "", ["/data"], False)
    assert transfer.steps == [f"session {DEST}", "send ahead", "send", "commit"]
    assert driver.get_info(server).state == power_state.SHUTDOWN
    # All its data has arrived, and none of its devices is on the network.
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
        ("send ahead", False),
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


@pytest.mark.parametrize("method", ["migrate_disk_and_power_off", "finish_migration"])
def test_a_refused_move_is_one_warning(
    server: Any,
    leave: Any,
    arrive: Any,
    transfer: FakeTransfer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise exception.ResizeRefused(reason="it is refused")

    monkeypatch.setattr(transfer, "send", refuse)
    monkeypatch.setattr(transfer, "adopt", refuse)
    with pytest.raises(nova_exception.NovaException, match="it is refused"):
        leave() if method == "migrate_disk_and_power_off" else arrive()
    fakes.check_one_warning(caplog, server.uuid, "it is refused")


@pytest.mark.parametrize("ends", [True, False])
def test_a_server_that_runs_during_the_last_copy_stays(
    driver: Any,
    server: Any,
    leave: Any,
    transfer: FakeTransfer,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    ends: bool,
) -> None:
    send = transfer.send

    def start(live: bool) -> float:
        (found,) = engine.containers.values()
        engine.containers[found.id] = replace(
            found,
            status="exited" if ends else "running",
            finished_at=datetime.datetime.now(datetime.UTC) if ends else None,
        )
        return send(live)

    monkeypatch.setattr(transfer, "send", start)
    with pytest.raises(nova_exception.InstanceFaultRollback, match="ran while its files were read"):
        leave()
    assert "commit" not in transfer.steps
    assert driver.get_info(server, use_cache=False).state == power_state.RUNNING


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
    assert transfer.steps == ["adopt", "discard"]
    state = power_state.RUNNING if power_on else power_state.SHUTDOWN
    assert driver.get_info(instance).state == state
    assert (instance.uuid in network.silent) is not power_on
    assert len(virtapi.awaited) == 1
    # The server's files in /etc were part of the data.
    assert network.etc_files == {}


def test_settings_arrive(instance: Any, arrive: Any, engine: FakeEngine, options: Any) -> None:
    """A variable that the tenant set wrong in the metadata does not stop the move."""
    options(group="docker", environment_from_metadata=True)
    instance.flavor.extra_specs = {"docker:sysctl:kernel.msgmax": "16384"}
    instance.system_metadata["image_docker_env_COLOUR"] = "blue"
    instance.metadata = {"docker_env_SIZE": "1", "docker_env_1": "1"}
    arrive()
    arrived = engine.specs[f"nova-{instance.uuid}"]
    assert arrived.isolation.sysctls == (("kernel.msgmax", "16384"),)
    assert arrived.environment == {
        "COLOUR": "blue",
        "SIZE": "1",
        "product_name": "OpenStack Nova",
    }


@pytest.mark.parametrize("broken", ["adopt", "plug", "start"])
@pytest.mark.parametrize("again", ["reboot", "nova-compute", "start"])
def test_an_arrival_that_failed_is_finished_later(
    driver: Any,
    instance: Any,
    arrive: Any,
    transfer: FakeTransfer,
    network: FakeNetwork,
    engine: FakeEngine,
    network_info: Any,
    broken: str,
    again: str,
) -> None:
    transfer.broken = broken
    engine.exit_code = 3 if broken == "start" else None
    network.failure = exception.PlugFailed(port_id="p", reason="-") if broken == "plug" else None
    with pytest.raises(nova_exception.NovaException):
        arrive()
    assert network.wired == set()
    assert driver.get_info(instance, use_cache=False).state == power_state.SHUTDOWN
    transfer.broken, engine.exit_code, network.failure = "", None, None
    if again == "reboot":
        driver.reboot(None, instance, network_info, "HARD")
    elif again == "start":
        driver.power_on(None, instance, network_info)
    else:
        driver.resume_state_on_host_boot(None, instance, network_info, None)
    assert driver.get_info(instance, use_cache=False).state == power_state.RUNNING
    # The data is adopted only once.
    adopted = ["adopt", "adopt again"] if broken == "adopt" else ["adopt"]
    assert transfer.steps == [*adopted, "discard"]
    driver.reboot(None, instance, network_info, "HARD")
    assert transfer.steps == [*adopted, "discard"]


def test_an_arrival_before_its_container_is_made_is_finished_later(
    driver: Any, instance: Any, arrive: Any, transfer: FakeTransfer, engine: Any, network_info: Any
) -> None:
    engine.away = True
    with pytest.raises(nova_exception.NovaException):
        arrive()
    engine.away = False
    assert transfer.steps == []
    driver.reboot(None, instance, network_info, "HARD")
    assert transfer.steps == ["adopt", "discard"]
    assert driver.get_info(instance, use_cache=False).state == power_state.RUNNING


def test_an_arrival_that_failed_goes_with_the_server(
    driver: Any, instance: Any, arrive: Any, transfer: FakeTransfer, engine: Any, network_info: Any
) -> None:
    transfer.broken = "adopt"
    with pytest.raises(nova_exception.NovaException):
        arrive()
    driver.destroy(None, instance, network_info)
    assert transfer.steps == ["adopt", "discard"]
    assert engine.containers == {}
    with pytest.raises(exception.ContainerLost):
        driver.reboot(None, instance, network_info, "HARD")


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
    # nova-compute calls this when it starts, and then again.
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


@pytest.mark.parametrize(
    ("takes", "sent"),
    [
        # A small server, a server that writes little, and a server that writes as fast as it is
        # sent.
        ([0.5], 1),
        ([20.0, 0.9], 2),
        ([20.0, 8.0, 3.0, 1.1], 4),
        ([20.0, 11.0], 2),
    ],
)
def test_while_a_server_runs_it_is_sent_until_little_is_left(
    monkeypatch: pytest.MonkeyPatch, takes: list[float], sent: int
) -> None:
    now = [0.0]
    times = iter(takes)
    live: list[bool] = []

    def send_stream(_talk: object, write: Any) -> int:
        now[0] += next(times)
        return int(write((1, 2)))

    def send_folders(_token: str, _folders: list[str], _target: object, running: bool) -> int:
        live.append(running)
        return 0

    monkeypatch.setattr(transfer_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(transfer_module.staging, "send_folders", send_folders)
    transport: Any = SimpleNamespace(send_stream=send_stream)
    destination: Any = None
    transfer_module.Session("-", destination, transport, "0" * 32, []).send_ahead()
    assert live == [True] * sent


@pytest.mark.parametrize("power_on", [True, False])
def test_back_from_another_cell(
    driver: Any,
    server: Any,
    network_info: Any,
    engine: FakeEngine,
    network: Any,
    power_on: bool,
) -> None:
    """For a move to another cell, Nova destroys the server but not its disk with all data."""
    (before,) = engine.containers
    for _ in range(2):
        driver.destroy(None, server, network_info, destroy_disks=False)
    assert driver.list_instance_uuids() == []
    assert [container.pid for container in engine.containers.values()] == [0]
    assert network.wired == set()
    for _ in range(2):
        driver.finish_revert_migration(None, server, network_info, FAR_AWAY, None, power_on)
    assert list(engine.containers) == [before]
    state = power_state.RUNNING if power_on else power_state.SHUTDOWN
    assert driver.get_info(server, use_cache=False).state == state


def test_confirmed_in_another_cell(
    driver: Any, server: Any, network_info: Any, engine: FakeEngine
) -> None:
    driver.destroy(None, server, network_info, destroy_disks=False)
    for _ in range(2):
        driver.cleanup(None, server, network_info, destroy_disks=True, destroy_vifs=False)
    assert engine.containers == {}
    driver.destroy(None, server, network_info, destroy_disks=False)


def test_what_a_cut_off_move_left_goes_with_the_server(
    driver: Any, server: Any, transfer: FakeTransfer, network: FakeNetwork, engine: FakeEngine
) -> None:
    assert driver.cleanup_lingering_instance_resources(server)
    assert transfer.steps == ["discard"]
    assert (engine.containers, network.wired, network.bound) == ({}, set(), {})
    # The second call does nothing.
    assert driver.cleanup_lingering_instance_resources(server)


@pytest.fixture
def migration(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the record of a move that was in progress when nova-compute died."""
    found = SimpleNamespace(id=7, status="post-migrating", saved="", cross_cell_move=False)

    def save() -> None:
        found.saved = found.status

    found.save = save
    monkeypatch.setattr(
        objects.Migration, "get_by_id_and_instance", lambda _context, _number, _uuid: found
    )
    return found


@pytest.mark.parametrize("old_state", [vm_states.ACTIVE, vm_states.STOPPED])
@pytest.mark.parametrize("broken", ["adopt", ""])
def test_a_move_that_was_cut_off_at_its_end_is_finished_when_nova_compute_starts(
    driver: Any,
    instance: Any,
    arrive: Any,
    transfer: FakeTransfer,
    network_info: Any,
    migration: Any,
    virtapi: Any,
    network: Any,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    old_state: str,
) -> None:
    transfer.broken = broken
    with contextlib.suppress(exception.ResizeRefused):
        arrive(power_on=False)
    transfer.broken = ""
    saved = []
    monkeypatch.setattr(instance, "save", lambda **_: saved.append(instance.vm_state))
    instance.migration_context = objects.MigrationContext(migration_id=7)
    instance.vm_state, instance.task_state = vm_states.ACTIVE, task_states.RESIZE_FINISH
    instance.system_metadata = {"old_vm_state": old_state}
    virtapi.awaited = []
    # An earlier request has filled the cache of servers.
    driver.list_instances()
    driver.plug_vifs(instance, network_info)
    # No event reaches a nova-compute that is starting.
    assert virtapi.awaited == []
    running = old_state == vm_states.ACTIVE
    assert bool(network.silent) is not running
    state = power_state.RUNNING if running else power_state.SHUTDOWN
    assert driver.get_info(instance, use_cache=False).state == state
    assert (migration.saved, saved) == ("finished", [vm_states.RESIZED])
    assert instance.task_state is None


@pytest.mark.parametrize("length", [0, 20])
def test_a_damaged_arrival_does_not_stop_nova_compute(
    fake_host: FakeHost,
    instance: Any,
    options: Any,
    tmp_path: Path,
    network_info: Any,
    length: int,
) -> None:
    (tmp_path / "arrivals").mkdir()
    (tmp_path / "arrivals" / instance.uuid).write_text(MOVE.to_text()[:length])
    options(state_path=str(tmp_path))
    driver = DockerDriver(None, fake_host.collaborators())
    driver.init_host("host1")
    instance.vm_state, instance.task_state = vm_states.ACTIVE, task_states.RESIZE_FINISH
    driver.plug_vifs(instance, network_info)
    with pytest.raises(exception.ResizeRefused, match="damaged"):
        driver.reboot(None, instance, network_info, "HARD")


def test_a_drive_that_the_server_does_not_have_does_not_stop_nova_compute(
    driver: Any,
    instance: Any,
    arrive: Any,
    engine: FakeEngine,
    transfer: FakeTransfer,
    network_info: Any,
) -> None:
    with pytest.raises(exception.ResizeRefused, match="the server has none"):
        arrive(replace(MOVE, drive=True))
    instance.vm_state, instance.task_state = vm_states.ACTIVE, task_states.RESIZE_FINISH
    driver.plug_vifs(instance, network_info)
    assert transfer.steps == []
    assert not engine.containers


def test_a_move_that_can_not_be_finished_does_not_stop_nova_compute(
    driver: Any,
    instance: Any,
    arrive: Any,
    transfer: FakeTransfer,
    network_info: Any,
    migration: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transfer.broken = "adopt"
    with pytest.raises(exception.ResizeRefused):
        arrive()
    transfer.broken = "adopt again"
    instance.vm_state, instance.task_state = vm_states.ACTIVE, task_states.RESIZE_FINISH
    driver.plug_vifs(instance, network_info)
    assert (migration.saved, instance.task_state) == ("", task_states.RESIZE_FINISH)
    monkeypatch.setattr(transfer, "adopt", unanswered)
    driver.plug_vifs(instance, network_info)
    assert (migration.saved, instance.task_state) == ("", task_states.RESIZE_FINISH)


def unanswered(*_arguments: object) -> None:
    raise comm.PrivsepTimeout("3600 s")


def test_an_unanswered_call_is_rolled_back() -> None:
    with (
        pytest.raises(nova_exception.InstanceFaultRollback, match="3600 s"),
        nova_records.rolled_back(),
    ):
        unanswered()


def test_a_confirmation_that_was_cut_off_can_be_done_again(
    migration: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def get(_context: object, filters: object) -> list[Any]:
        asked.append(filters)
        return [migration]

    monkeypatch.setattr(objects.MigrationList, "get_by_filters", get)
    nova_records.reopen_confirmations("host1")
    assert migration.saved == "finished"
    assert asked == [{"source_compute": "host1", "status": "confirming"}]


FINISH = "finish_revert_resize"
REMOVED, RETURNED = "compute_revert_resize", f"compute_{FINISH}"


@pytest.mark.parametrize(
    ("action", "events", "asked"),
    [
        # The request is still queued.
        ("revertResize", [], ""),
        ("revertResize", [(REMOVED, "host1", None)], "revert_resize"),
        ("revertResize", [(REMOVED, "host2", None)], ""),
        ("revertResize", [(REMOVED, "host1", 1)], ""),
        ("revertResize", [(RETURNED, "host1", None), (REMOVED, "host2", 1)], FINISH),
        # The move is on the same host.
        ("revertResize", [(RETURNED, "host1", None), (REMOVED, "host1", 1)], FINISH),
        # The action was interrupted before and has ended since.
        ("revertResize", [(REMOVED, "host1", None), (REMOVED, "host1", 1)], ""),
        ("migrate", [(REMOVED, "host1", None)], ""),
    ],
)
def test_a_revert_that_was_cut_off_goes_on(
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    events: list[tuple[str, str, int | None]],
    asked: str,
) -> None:
    server, latest = SimpleNamespace(uuid="server"), SimpleNamespace(id=9)
    records: dict[tuple[Any, str], tuple[object, list[Any]]] = {
        (objects.InstanceList, "get_by_filters"): ({"task_state": "resize_reverting"}, [server]),
        (objects.InstanceActionList, "get_by_instance_uuid"): (
            "server",
            [SimpleNamespace(id=5, action=action, request_id="req-1")],
        ),
        (objects.InstanceActionEventList, "get_by_action"): (
            5,
            [
                SimpleNamespace(event=name, host=at, start_time=0, finish_time=end)
                for name, at, end in events
            ],
        ),
        (objects.MigrationList, "get_by_filters"): (
            {"instance_uuid": "server"},
            [latest, SimpleNamespace(id=8)],
        ),
    }
    for (kind, name), (wanted, found) in records.items():

        def get(_context: object, given: object, *, wanted=wanted, found=found, **_: Any) -> Any:
            assert given == wanted
            return found

        monkeypatch.setattr(kind, name, get)
    sent: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        nova_records.rpcapi,
        "ComputeAPI",
        lambda: SimpleNamespace(
            revert_resize=lambda _, *given: sent.append(("revert_resize", *given)),
            finish_revert_resize=lambda _, *given: sent.append((FINISH, *given)),
        ),
    )
    nova_records.resume_reverts("host1")
    assert sent == ([(asked, server, latest, "host1", None)] if asked else [])


@pytest.mark.parametrize("task", [task_states.RESIZE_MIGRATING, task_states.RESIZE_REVERTING])
def test_a_move_that_was_cut_off_is_taken_back_in_novas_records(
    driver: Any,
    server: Any,
    leave: Any,
    network_info: Any,
    migration: Any,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
) -> None:
    leave()
    moved = []
    placement = SimpleNamespace(
        get_allocations_for_consumer=lambda _context, _uuid: {"host1": {}},
        move_allocations=lambda _context, source, target: moved.append((source, target)),
    )
    monkeypatch.setattr(nova_records.report, "report_client_singleton", lambda: placement)
    migration.uuid, migration.source_compute, migration.dest_compute = "move", "host1", "host2"
    server.task_state = task
    driver.finish_revert_migration(None, server, network_info, migration, None, True)
    assert driver.get_info(server, use_cache=False).state == power_state.RUNNING
    cut_off = task == task_states.RESIZE_MIGRATING
    assert moved == ([("move", server.uuid)] if cut_off else [])
    assert migration.saved == ("error" if cut_off else "")


@pytest.fixture
def evacuate(driver: Any, instance: Any, image_meta: Any, network_info: Any) -> Any:
    instance.migration_context = None

    def call(evacuate: bool = True) -> None:
        instance.task_state = task_states.REBUILDING
        arguments = (None, instance, image_meta, [], None, {}, BDMS, detach, attach)
        old = block_devices(connection(kind="fibre_channel"))
        driver.rebuild(
            *arguments, network_info=network_info, evacuate=evacuate, block_device_info=old
        )

    def detach(context: Any, bdms: Any) -> None:
        assert (bdms, instance.task_state) == (BDMS, task_states.REBUILDING)
        steps.append("detach")

    def attach(context: Any, of: Any, bdms: Any) -> dict[str, Any]:
        assert (of, bdms) == (instance, BDMS)
        assert instance.task_state == task_states.REBUILD_BLOCK_DEVICE_MAPPING
        steps.append("attach")
        return block_devices(connection())

    steps: list[str] = []
    call.steps = steps  # type: ignore[attr-defined]
    return call


def test_an_evacuated_server_is_made_of_its_copy(
    driver: Any, instance: Any, evacuate: Any, fake_host: FakeHost, monkeypatch: Any
) -> None:
    saved = []
    monkeypatch.setattr(instance, "save", lambda **expected: saved.append(expected))
    fake_host.backups.moves = {instance.uuid: MOVE}
    evacuate()
    assert driver.get_info(instance, use_cache=False).state == power_state.RUNNING
    assert fake_host.transfer.steps == ["adopt", "discard"]
    # Nova's manager expects this task state.
    assert instance.task_state == task_states.REBUILD_SPAWNING
    assert saved == [
        {"expected_task_state": [task_states.REBUILDING]},
        {"expected_task_state": [task_states.REBUILD_BLOCK_DEVICE_MAPPING]},
    ]


def test_an_evacuated_server_has_new_attachments_of_its_volumes(
    instance: Any, evacuate: Any, fake_host: FakeHost, monkeypatch: Any
) -> None:
    monkeypatch.setattr(instance, "save", lambda **_: None)
    connected = []
    connect = fake_host.volume_connector.connect

    def record(volume: Volume) -> Any:
        connected.append(volume.kind)
        return connect(volume)

    monkeypatch.setattr(fake_host.volume_connector, "connect", record)
    fake_host.backups.moves = {instance.uuid: MOVE}
    evacuate()
    assert evacuate.steps == ["detach", "attach"]
    # The old attachment was the dead host's.
    assert connected == ["iscsi"]
    assert FIRST in fake_host.volume_devices.held[instance.uuid]


def test_an_evacuated_server_has_the_cpus_that_nova_claimed_here(
    instance: Any, evacuate: Any, fake_host: FakeHost, monkeypatch: Any
) -> None:
    monkeypatch.setattr(instance, "save", lambda **_: None)
    old, new = objects.InstanceNUMATopology(cells=[]), objects.InstanceNUMATopology(cells=[])
    instance.numa_topology = old
    instance.pci_requests = instance.pci_devices = instance.resources = None
    instance.migration_context = objects.MigrationContext(
        old_numa_topology=old,
        new_numa_topology=new,
        **{f"new_{name}": None for name in ("pci_requests", "pci_devices", "resources")},
    )
    seen = []
    adopt = fake_host.transfer.adopt

    def record(*arguments: Any) -> None:
        seen.append(instance.numa_topology)
        adopt(*arguments)

    monkeypatch.setattr(fake_host.transfer, "adopt", record)
    fake_host.backups.moves = {instance.uuid: MOVE}
    evacuate()
    assert len(seen) == 1
    assert seen[0] is new
    # Nova's manager applies the claim itself.
    assert instance.numa_topology is old


@pytest.mark.parametrize("step", ["adopt", "start"])
def test_an_evacuation_that_fails_leaves_nothing(
    instance: Any,
    evacuate: Any,
    fake_host: FakeHost,
    engine: FakeEngine,
    monkeypatch: Any,
    step: str,
) -> None:
    monkeypatch.setattr(instance, "save", lambda **_: None)
    fake_host.backups.moves = {instance.uuid: MOVE}
    if step == "adopt":
        fake_host.transfer.broken = step
    else:
        engine.exit_code = 1
    with pytest.raises(nova_exception.NovaException):
        evacuate()
    assert engine.containers == {}
    assert instance.uuid not in fake_host.volume_devices.held
    assert fake_host.volume_connector.calls[-1] == ("disconnect", FIRST)
    assert fake_host.transfer.steps[-1] == "discard"
    # Another evacuation needs the copy.
    assert fake_host.backups.removed == []


def test_the_manager_rebuilds_what_has_no_copy(
    instance: Any, evacuate: Any, fake_host: FakeHost
) -> None:
    with pytest.raises(NotImplementedError):
        evacuate()
    assert evacuate.steps == []
    fake_host.backups.moves = {instance.uuid: MOVE}
    with pytest.raises(NotImplementedError):
        evacuate(evacuate=False)


@pytest.mark.parametrize(
    ("host", "task", "removed"),
    [
        ("host1", task_states.DELETING, True),
        # The server's new host continues the copies.
        ("host2", None, False),
        ("host1", task_states.RESIZE_REVERTING, False),
    ],
)
def test_a_copy_goes_with_its_server(
    driver: Any,
    server: Any,
    network_info: Any,
    fake_host: FakeHost,
    monkeypatch: Any,
    host: str,
    task: str | None,
    removed: bool,
) -> None:
    monkeypatch.setattr(fake_host.nova_records, "is_reverted_here", lambda _instance: False)
    server.host, server.task_state = host, task
    driver.destroy(None, server, network_info)
    assert (fake_host.backups.removed == [server.uuid]) is removed


def test_server_that_is_still_to_arrive_is_left_alone_at_the_start(
    driver: Any, instance: Any, network_info: Any, network: FakeNetwork
) -> None:
    instance.task_state = task_states.RESIZE_MIGRATED
    driver.plug_vifs(instance, network_info)
    driver.resume_state_on_host_boot(None, instance, network_info, None)
    assert network.wired == set()


def test_server_in_a_resize_on_this_host_is_wired_at_the_start(
    driver: Any, server: Any, network_info: Any, network: FakeNetwork
) -> None:
    server.task_state = task_states.RESIZE_MIGRATED
    network.wired.clear()
    driver.plug_vifs(server, network_info)
    assert network.wired == {server.uuid}


def test_port_that_came_up_before_the_arrival_is_not_awaited(
    arrive: Any, network_info: Any, fake_host: FakeHost, virtapi: fakes.FakeVirtAPI
) -> None:
    fake_host.neutron.active = {network_info[0]["id"]}
    arrive()
    assert virtapi.awaited == []
