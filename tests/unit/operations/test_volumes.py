# SPDX-License-Identifier: Apache-2.0
"""Volumes in each operation of Nova, on fakes of this project's own modules."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from nova import exception as nova_exception
from nova import objects
from nova.compute import power_state, task_states
from nova.compute import provider_tree as placement

from novadocker import exception
from novadocker.linux.namespaces import IdMaps
from tests.unit.fakes import FakeEnforcement, FakeEngine, FakeHost
from tests.unit.operations.volumes import FIRST, SECOND, block_devices, connection

HERE = SimpleNamespace(source_compute="host1", dest_compute="host1", cross_cell_move=False)


@pytest.fixture
def spawn(driver: Any, instance: Any, image_meta: Any, network_info: Any) -> Any:
    def call(*connections: dict[str, Any]) -> None:
        driver.spawn(
            *(None, instance, image_meta, [], None, {}),
            network_info=network_info,
            block_device_info=block_devices(*connections),
        )

    return call


def container(instance: Any) -> str:
    return f"id-nova-{instance.uuid}"


def test_a_server_is_built_with_its_volumes(spawn: Any, instance: Any, fake_host: FakeHost) -> None:
    read_only = connection(SECOND, kind="local")
    read_only["data"]["access_mode"] = "ro"
    found = connection()
    spawn(found, read_only)
    held = fake_host.volume_devices.held[instance.uuid]
    assert held[FIRST] == {
        "volume_id": FIRST,
        "path": "/dev/vdb",
        "source": f"/dev/disk/by-path/{FIRST}",
        "writable": True,
        "shared": False,
        "root": False,
        "rates": {"read_bytes": 0, "write_bytes": 0, "read_iops": 0, "write_iops": 0},
    }
    assert (held[SECOND]["path"], held[SECOND]["writable"]) == ("/dev/vdc", False)
    # The record gives them to the container when it starts.
    assert fake_host.volume_devices.given == set()


def test_a_volume_that_fails_undoes_the_build(
    spawn: Any, instance: Any, fake_host: FakeHost, engine: FakeEngine
) -> None:
    fake_host.volume_connector.failing = {SECOND}
    with pytest.raises(nova_exception.VolumeAttachFailed, match="no path to it"):
        spawn(connection(), connection(SECOND))
    assert engine.containers == {}
    assert not fake_host.volume_devices.held.get(instance.uuid)
    assert ("disconnect", FIRST) in fake_host.volume_connector.calls


@pytest.mark.parametrize("words", ["let servers boot from it", "decrypt", "/dev/../x"])
def test_a_build_with_a_volume_that_no_host_can_attach_is_refused(
    driver: Any, instance: Any, image_meta: Any, network_info: Any, fake_host: FakeHost, words: str
) -> None:
    asked = block_devices(connection())
    (mapping,) = asked["block_device_mapping"]
    if "boot" in words:
        # The operator has to allow it.
        mapping["boot_index"] = 0
    elif "/" in words:
        mapping["mount_device"] = words
    else:
        mapping["connection_info"]["data"]["encrypted"] = True
    with pytest.raises(exception.RequestRefused, match=words):
        driver.spawn(
            *(None, instance, image_meta, [], None, {}),
            network_info=network_info,
            block_device_info=asked,
        )
    assert fake_host.volume_connector.calls == []


def test_deletion_disconnects_volumes(
    driver: Any, spawn: Any, instance: Any, network_info: Any, fake_host: FakeHost
) -> None:
    spawn(connection())
    driver.destroy(None, instance, network_info, block_devices(connection()))
    assert fake_host.volume_connector.calls[-1] == ("disconnect", FIRST)
    assert instance.uuid not in fake_host.volume_devices.held
    # A second deletion, and one of a volume that was never connected.
    driver.destroy(None, instance, network_info, block_devices(connection()))
    driver.destroy(None, instance, network_info, block_devices({}))


def test_the_disks_of_a_deleted_server_are_forgotten(
    driver: Any,
    instance: Any,
    fake_host: FakeHost,
    options: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """nova-compute may die after it has deleted the container and the network."""
    options(running_deleted_instance_action="reap")
    monkeypatch.setattr(
        fake_host.nova_records, "deleted", lambda uuids: [instance] * (instance.uuid in uuids)
    )
    device = {"volume_id": FIRST, "path": "/dev/vdb", "shared": False}
    fake_host.volume_devices.hold(instance.uuid, device)
    tree = placement.ProviderTree()
    tree.new_root("host1", "0fb0e8c6-0d6c-4a6c-9b1f-1f1f1f1f1f1f")
    driver.update_provider_tree(tree, "host1")
    assert instance.uuid not in fake_host.volume_devices.held


@pytest.mark.parametrize("operation", ["destroy", "cleanup"])
def test_deletion_goes_on_when_a_volume_cannot_be_disconnected(
    driver: Any,
    spawn: Any,
    instance: Any,
    network_info: Any,
    engine: FakeEngine,
    fake_host: FakeHost,
    caplog: pytest.LogCaptureFixture,
    operation: str,
) -> None:
    spawn(connection(), connection(SECOND))
    fake_host.volume_connector.stuck = {FIRST}
    found = block_devices(connection(), connection(SECOND))
    getattr(driver, operation)(None, instance, network_info, found)
    assert ("disconnect", SECOND) in fake_host.volume_connector.calls
    assert engine.containers == {}
    assert instance.uuid not in fake_host.volume_devices.held
    assert f"Failed to disconnect volume {FIRST}" in caplog.text


def test_a_server_that_may_come_back_is_not_put_away_with_a_volume(
    driver: Any, spawn: Any, instance: Any, network_info: Any, fake_host: FakeHost
) -> None:
    spawn(connection())
    fake_host.volume_connector.stuck = {FIRST}
    with pytest.raises(exception.VolumeFailed, match="busy"):
        driver.destroy(None, instance, network_info, block_devices(connection()), False)


def test_deletion_while_the_engine_is_away_keeps_the_volumes(
    driver: Any, spawn: Any, instance: Any, network_info: Any, engine: Any, fake_host: FakeHost
) -> None:
    spawn(connection())
    engine.away = True
    with pytest.raises(exception.EngineUnavailable):
        driver.destroy(None, instance, network_info, block_devices(connection()))
    assert FIRST in fake_host.volume_devices.held[instance.uuid]
    assert ("disconnect", FIRST) not in fake_host.volume_connector.calls


@pytest.fixture
def attach(driver: Any, instance: Any) -> Any:
    instance.save = lambda: None

    def call(found: dict[str, Any], path: str = "/dev/vdb") -> None:
        driver.attach_volume(None, found, instance, path)

    return call


def test_attach_and_detach(
    driver: Any, spawn: Any, attach: Any, instance: Any, fake_host: FakeHost
) -> None:
    spawn()
    attach(connection())
    devices = fake_host.volume_devices
    assert devices.given == {(container(instance), FIRST)}
    driver.detach_volume(None, connection(), instance, "/dev/vdb")
    assert (devices.given, devices.held[instance.uuid]) == (set(), {})
    assert fake_host.volume_connector.calls == [("connect", FIRST), ("disconnect", FIRST)]
    # Nova detaches the volume of a server without a container while it rebuilds the server.
    driver.detach_volume(None, connection(), instance, "/dev/vdb")


def test_an_attachment_that_nova_cannot_record_is_undone(
    driver: Any, spawn: Any, instance: Any, fake_host: FakeHost
) -> None:
    spawn()

    def save() -> None:
        raise nova_exception.InstanceNotFound(instance_id=instance.uuid)

    instance.save = save
    with pytest.raises(nova_exception.InstanceNotFound):
        driver.attach_volume(None, connection(), instance, "/dev/vdb")
    assert fake_host.volume_devices.given == set()
    assert fake_host.volume_devices.held[instance.uuid] == {}
    assert fake_host.volume_connector.calls[-1] == ("disconnect", FIRST)


@pytest.mark.parametrize("in_use", [False, True])
def test_a_volume_that_fails_takes_the_others_from_a_running_server(
    driver: Any,
    spawn: Any,
    instance: Any,
    network_info: Any,
    fake_host: FakeHost,
    caplog: pytest.LogCaptureFixture,
    in_use: bool,
) -> None:
    spawn()
    devices = fake_host.volume_devices
    fake_host.volume_connector.failing = {SECOND}
    if in_use:
        devices.users = {FIRST: "process 'postgres'"}
    found = block_devices(connection(), connection(SECOND))
    with pytest.raises(nova_exception.VolumeAttachFailed, match="no path to it"):
        driver.power_on(None, instance, network_info, found)
    # A device that a process has open would fail under it.
    assert devices.given == ({(container(instance), FIRST)} if in_use else set())
    assert (FIRST in devices.held[instance.uuid]) is in_use
    assert (("disconnect", FIRST) in fake_host.volume_connector.calls) is not in_use
    assert ("postgres" in caplog.text) is in_use


@pytest.mark.parametrize("kind", ["iscsi", "local"])
def test_nova_saves_the_device_path_of_a_connection(
    driver: Any, spawn: Any, instance: Any, network_info: Any, fake_host: FakeHost, kind: str
) -> None:
    spawn()
    found = block_devices(connection(kind=kind))
    (mapping,) = found["block_device_mapping"]
    given = "/dev/disk/by-id/stable"
    mapping["connection_info"]["data"]["device_path"] = given
    driver.power_on(None, instance, network_info, found)
    driver.power_on(None, instance, network_info, found)
    local = kind == "local"
    path = given if local else f"/dev/disk/by-path/{FIRST}"
    assert mapping["connection_info"]["data"]["device_path"] == path
    assert [saved["data"]["device_path"] for saved in mapping.saved] == ([] if local else [path])


def test_a_volume_is_logged_as_attached_once(
    driver: Any, spawn: Any, instance: Any, network_info: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        spawn(connection())
        driver.power_on(None, instance, network_info, block_devices(connection()))
    assert caplog.text.count("Attached volume") == 1


def test_attach_to_a_stopped_server(
    driver: Any, spawn: Any, attach: Any, instance: Any, network_info: Any, fake_host: FakeHost
) -> None:
    spawn()
    driver.power_off(instance)
    attach(connection())
    assert FIRST in fake_host.volume_devices.held[instance.uuid]
    assert fake_host.volume_devices.given == set()
    driver.power_on(None, instance, network_info, block_devices(connection()))


def test_a_device_that_is_in_use_is_not_detached(
    driver: Any, spawn: Any, attach: Any, instance: Any, fake_host: FakeHost
) -> None:
    spawn()
    attach(connection())
    fake_host.volume_devices.users = {FIRST: "process 'postgres'"}
    with pytest.raises(nova_exception.DeviceDetachFailed, match="process 'postgres'"):
        driver.detach_volume(None, connection(), instance, "/dev/vdb")
    assert FIRST in fake_host.volume_devices.held[instance.uuid]
    assert ("disconnect", FIRST) not in fake_host.volume_connector.calls


def test_a_volume_of_another_server_is_refused(
    spawn: Any, attach: Any, instance: Any, fake_host: FakeHost
) -> None:
    spawn()
    other = "7e570000-0000-4000-8000-0000000000a1"
    device = {"volume_id": FIRST, "path": "/dev/vdb", "shared": False}
    fake_host.volume_devices.hold(other, device)
    with pytest.raises(nova_exception.VolumeAttachFailed, match="another instance"):
        attach(connection())
    # The other server keeps its connection.
    assert fake_host.volume_connector.calls == [("connect", FIRST)]
    assert FIRST in fake_host.volume_devices.held[other]


def test_servers_that_share_a_volume_share_its_connection(
    driver: Any, spawn: Any, attach: Any, instance: Any, fake_host: FakeHost
) -> None:
    spawn()
    other = "7e570000-0000-4000-8000-0000000000a1"
    device = {"volume_id": FIRST, "path": "/dev/vdb", "shared": True}
    fake_host.volume_devices.hold(other, device)
    shared = connection(multiattach=True)
    attach(shared)
    driver.detach_volume(None, shared, instance, "/dev/vdb")
    assert fake_host.volume_connector.calls == [("connect", FIRST)]


def test_no_volumes_where_the_engine_remaps_users(
    spawn: Any, driver: Any, fake_host: FakeHost
) -> None:
    fake_host.id_maps = IdMaps(users=((0, 1000, 5),), groups=((0, 2000, 6),))
    driver.init_host("host1")
    with pytest.raises(nova_exception.VolumeAttachFailed, match="userns-remap"):
        spawn(connection())
    assert fake_host.volume_connector.calls[0][0] == "disconnect"


def test_extend(driver: Any, instance: Any, fake_host: FakeHost) -> None:
    driver.extend_volume(None, connection(), instance, 1 << 30)
    with pytest.raises(nova_exception.VolumeAttachFailed, match="1073741824 bytes"):
        driver.extend_volume(None, connection(), instance, 2 << 30)


@pytest.mark.parametrize("operation", ["power_on", "reboot", "resume", "boot", "rescue"])
def test_each_start_connects_the_volumes_again(
    driver: Any,
    spawn: Any,
    instance: Any,
    image_meta: Any,
    network_info: Any,
    fake_host: FakeHost,
    operation: str,
) -> None:
    spawn(connection())
    fake_host.volume_connector.calls.clear()
    # As after a reboot of the host.
    fake_host.volume_devices.held.clear()
    driver.power_off(instance)
    found = block_devices(connection())
    if operation == "reboot":
        driver.reboot(None, instance, network_info, "HARD", found)
    elif operation == "rescue":
        driver.rescue(None, instance, network_info, image_meta, "secret", found, None)
    elif operation == "boot":
        driver.resume_state_on_host_boot(None, instance, network_info, None, found)
    else:
        getattr(driver, operation)(None, instance, network_info, found)
    assert fake_host.volume_connector.calls == [("connect", FIRST)]
    assert FIRST in fake_host.volume_devices.held[instance.uuid]


def test_the_end_of_a_rescue_reads_the_volumes_in_novas_database(
    driver: Any, spawn: Any, instance: Any, image_meta: Any, network_info: Any, fake_host: FakeHost
) -> None:
    spawn(connection())
    found = fake_host.block_devices = block_devices(connection())
    driver.rescue(None, instance, network_info, image_meta, "secret", found, None)
    fake_host.volume_devices.held.clear()
    driver.unrescue(None, instance)
    assert FIRST in fake_host.volume_devices.held[instance.uuid]


# -- resize and migration -------------------------------------------------------------------------


@pytest.fixture
def server(spawn: Any, instance: Any, fake_host: FakeHost, monkeypatch: Any) -> Any:
    # Skip the update of Nova's own records.
    monkeypatch.setattr(fake_host.nova_records, "take_back", lambda *_: None)
    instance.migration_context = None
    return instance


def large() -> objects.Flavor:
    return objects.Flavor(
        **{"name": "large", "vcpus": 4, "memory_mb": 512, "root_gb": 1, "ephemeral_gb": 0},
        swap=0,
        extra_specs={},
    )


@pytest.mark.parametrize(("kind", "kept"), [("local", True), ("iscsi", False)])
def test_a_live_resize_gives_the_volumes_back(
    driver: Any,
    spawn: Any,
    server: Any,
    network_info: Any,
    fake_host: FakeHost,
    engine: FakeEngine,
    kind: str,
    kept: bool,
) -> None:
    found = block_devices(connection(kind=kind))
    spawn(connection(kind=kind))
    engine.calls.clear()
    here = driver.get_host_ip_addr()
    info = driver.migrate_disk_and_power_off(None, server, here, large(), network_info, found)
    # Nova deletes the attachment here, which ends the connection of the second kind.
    assert (FIRST in fake_host.volume_devices.held[server.uuid]) is kept
    assert (("disconnect", FIRST) in fake_host.volume_connector.calls) is not kept
    server.old_flavor, server.flavor = server.flavor, large()
    driver.finish_migration(
        None, None, server, info, network_info, None, True, {}, block_device_info=found
    )
    assert FIRST in fake_host.volume_devices.held[server.uuid]
    assert (container(server), FIRST) in fake_host.volume_devices.given
    assert engine.calls == []


def test_a_resize_that_would_cut_a_volume_off_is_refused(
    driver: Any, spawn: Any, server: Any, network_info: Any, fake_host: FakeHost
) -> None:
    spawn(connection(), connection(SECOND))
    fake_host.volume_devices.users = {SECOND: "process 'postgres'"}
    found = block_devices(connection(), connection(SECOND))
    here = driver.get_host_ip_addr()
    with pytest.raises(nova_exception.InstanceFaultRollback, match="postgres"):
        driver.migrate_disk_and_power_off(None, server, here, large(), network_info, found)
    assert fake_host.volume_devices.held[server.uuid].keys() == {FIRST, SECOND}
    assert (container(server), FIRST) in fake_host.volume_devices.given


def test_a_resize_whose_volumes_fail_has_the_old_limits(
    driver: Any,
    spawn: Any,
    server: Any,
    network_info: Any,
    fake_host: FakeHost,
    enforcement: FakeEnforcement,
) -> None:
    spawn(connection())
    found = block_devices(connection())
    (before,) = enforcement.kept.values()
    here = driver.get_host_ip_addr()
    info = driver.migrate_disk_and_power_off(None, server, here, large(), network_info, found)
    assert list(enforcement.kept.values()) != [before]
    server.old_flavor, server.flavor = server.flavor, large()
    fake_host.volume_connector.failing = {FIRST}
    with pytest.raises(nova_exception.InstanceFaultRollback, match="no path to it"):
        driver.finish_migration(
            None, None, server, info, network_info, None, True, {}, block_device_info=found
        )
    assert list(enforcement.kept.values()) == [before]


@pytest.mark.parametrize("in_use", [False, True])
def test_a_reverted_resize_gives_the_volumes_back(
    driver: Any,
    spawn: Any,
    server: Any,
    network_info: Any,
    fake_host: FakeHost,
    monkeypatch: Any,
    in_use: bool,
) -> None:
    found = block_devices(connection())
    spawn(connection())
    monkeypatch.setattr(fake_host.nova_records, "is_reverted_here", lambda _instance: True)
    server.task_state = task_states.RESIZE_REVERTING
    if in_use:
        fake_host.volume_devices.users = {FIRST: "process 'postgres'"}
    driver.destroy(None, server, network_info, found)
    assert FIRST not in fake_host.volume_devices.held[server.uuid]
    assert driver.get_info(server, use_cache=False).state == (
        power_state.SHUTDOWN if in_use else power_state.RUNNING
    )
    driver.finish_revert_migration(None, server, network_info, HERE, found, True)
    assert FIRST in fake_host.volume_devices.held[server.uuid]
    assert driver.get_info(server, use_cache=False).state == power_state.RUNNING


def test_a_move_leaves_the_volumes_to_the_other_host(
    driver: Any, spawn: Any, server: Any, network_info: Any, fake_host: FakeHost
) -> None:
    found = block_devices(connection(kind="local"))
    spawn(connection(kind="local"))
    driver.migrate_disk_and_power_off(None, server, "192.0.2.9", server.flavor, network_info, found)
    assert not fake_host.volume_devices.held.get(server.uuid)
    assert fake_host.volume_connector.calls[-1] == ("disconnect", FIRST)


@pytest.mark.parametrize("step", ["send", "commit"])
def test_a_move_that_fails_keeps_the_volumes(
    driver: Any, spawn: Any, server: Any, network_info: Any, fake_host: FakeHost, step: str
) -> None:
    found = block_devices(connection())
    spawn(connection())
    fake_host.transfer.broken = step
    with pytest.raises(nova_exception.InstanceFaultRollback, match="broken"):
        driver.migrate_disk_and_power_off(
            None, server, "192.0.2.9", server.flavor, network_info, found
        )
    assert FIRST in fake_host.volume_devices.held[server.uuid]
    assert driver.get_info(server, use_cache=False).state == power_state.RUNNING


# -- names ----------------------------------------------------------------------------------------


def test_names_of_devices(driver: Any, instance: Any) -> None:
    def name(*taken: str, wanted: str | None = None) -> str:
        found = driver.get_device_name_for_instance(
            instance,
            [SimpleNamespace(device_name=each) for each in (*taken, None)],
            SimpleNamespace(device_name=wanted),
        )
        return str(found)

    assert driver.default_root_device_name(instance, None, None) == "/dev/vda"
    assert name("/dev/vda") == "/dev/vdb"
    assert name("/dev/vda", "/dev/vdb") == "/dev/vdc"
    assert name("/dev/vda", wanted="/dev/sdf") == "/dev/vdf"
    with pytest.raises(nova_exception.DevicePathInUse):
        name("/dev/vda", "/dev/vdb", wanted="/dev/vdb")


def test_the_connector_has_the_hosts_name(driver: Any, instance: Any) -> None:
    assert driver.get_volume_connector(instance)["host"] == "host1"
