# SPDX-License-Identifier: Apache-2.0
"""Servers that boot from volumes, on fakes of this project's own modules."""

from types import SimpleNamespace
from typing import Any

import pytest
from nova import exception as nova_exception
from nova import objects

from novadocker import exception
from novadocker.privsep.guest import root_volumes
from novadocker.virt.docker.migration.disk_info import Move
from tests.unit import fakes
from tests.unit.fakes import FakeEngine, FakeHost
from tests.unit.operations.volumes import FIRST, SECOND, DriverMapping, block_devices, connection

GLANCE_ID = "5eed0000-0000-4000-8000-0000000000c1"
DIGEST = "0123456789abcdef0123456789abcdef"


def volume_image(container_format: str = "docker") -> objects.ImageMeta:
    return objects.ImageMeta(
        id=GLANCE_ID,
        name="web",
        checksum=DIGEST,
        container_format=container_format,
        disk_format="raw",
        size=4096,
        properties=objects.ImageMetaProps(),
    )


@pytest.fixture(autouse=True)
def allowed(options: Any) -> None:
    options(volume_modes=["raw", "mount"], group="docker")


@pytest.fixture(autouse=True)
def made_of_an_image(fake_host: FakeHost) -> None:
    fake_host.volume_image = volume_image()


@pytest.fixture
def backed(instance: Any) -> Any:
    """Return an instance as Nova has it if it boots from a volume."""
    instance.image_ref = ""
    return instance


def root_devices(*more: dict[str, Any]) -> dict[str, Any]:
    """Return the block devices of a server that boots from a volume and has others."""
    found = block_devices(*more)
    found["block_device_mapping"].insert(
        0, DriverMapping(connection_info=connection(), mount_device="/dev/vda", boot_index=0)
    )
    return found


@pytest.fixture
def spawn(driver: Any, backed: Any, network_info: Any) -> Any:
    def call(devices: dict[str, Any] | None = None, files: Any = (), image: Any = None) -> None:
        # Nova's record of a volume's image has no id.
        no_id = objects.ImageMeta.from_dict({"properties": {}})
        driver.spawn(
            *(None, backed, image or no_id, files, None, {}),
            network_info=network_info,
            block_device_info=root_devices() if devices is None else devices,
        )

    return call


@pytest.mark.parametrize(
    ("content", "fills"),
    [
        (root_volumes.BLANK, True),
        (root_volumes.IMAGE, True),
        (root_volumes.UNFINISHED, True),
        (root_volumes.FILLED, False),
    ],
)
def test_a_server_boots_from_a_volume(
    spawn: Any, backed: Any, fake_host: FakeHost, content: str, fills: bool
) -> None:
    fake_host.root_volumes.content = content
    spawn(root_devices(connection(SECOND)))
    held = fake_host.volume_devices.held[backed.uuid]
    assert (held[FIRST]["path"], held[FIRST]["root"]) == ("/dev/vda", True)
    assert (held[SECOND]["path"], held[SECOND]["root"]) == ("/dev/vdb", False)
    assert fake_host.root_volumes.examined == [(GLANCE_ID, DIGEST, 4096)]
    assert (backed.uuid in fake_host.root_volumes.filled) is fills
    assert fake_host.root_volumes.prepared == [backed.uuid]
    # The volume is the bound of the image, and the flavor's disk does not count.
    assert fake_host.images.most == [10 << 30]
    (made,) = fake_host.engine.specs.values()
    assert made.limits.disk_bytes == 0


def test_the_volume_gets_the_files_of_the_new_container(
    spawn: Any, backed: Any, fake_host: FakeHost
) -> None:
    spawn()
    wanted = f"the files of id-nova-{backed.uuid}".encode() + bytes(1024)
    assert fake_host.root_volumes.filled == {backed.uuid: wanted}


def test_an_image_that_is_a_file_system_needs_no_image_of_the_engine(
    spawn: Any, fake_host: FakeHost
) -> None:
    fake_host.root_volumes.content = root_volumes.FILE_SYSTEM
    for image in (None, volume_image("bare")):
        fake_host.volume_image = image
        spawn()
        assert fake_host.images.most == [-1]
        assert fake_host.root_volumes.filled == {}
        fake_host.images.most.clear()
        fake_host.engine.containers.clear()


@pytest.mark.parametrize(
    "content", [root_volumes.FOREIGN, root_volumes.BLANK, root_volumes.FILE_SYSTEM]
)
def test_a_volume_that_cannot_be_booted_is_refused(
    spawn: Any, backed: Any, fake_host: FakeHost, engine: FakeEngine, content: str
) -> None:
    fake_host.root_volumes.content = content
    if content == root_volumes.BLANK:
        fake_host.volume_image = None
    with pytest.raises(exception.RequestRefused, match=f"cannot boot from volume {FIRST}"):
        spawn()
    assert engine.containers == {}
    assert fake_host.root_volumes.filled == {}
    assert not fake_host.volume_devices.held.get(backed.uuid)
    assert fake_host.volume_connector.calls[-1] == ("disconnect", FIRST)


def test_a_volume_whose_record_is_malformed_is_not_tried_on_other_hosts(
    driver: Any, spawn: Any, fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise exception.VolumeRefused(volume_id=FIRST, reason="no valid id of an image")

    monkeypatch.setattr(driver._services, "read_volume_image", refuse)
    with pytest.raises(exception.RequestRefused, match="no valid id of an image"):
        spawn()
    assert fake_host.volume_connector.calls[-1] == ("disconnect", FIRST)


def test_a_blank_volume_and_an_image_of_the_request(
    spawn: Any, backed: Any, fake_host: FakeHost
) -> None:
    image, fake_host.volume_image = fake_host.volume_image, None
    backed.image_ref = GLANCE_ID
    spawn(image=image)
    assert backed.uuid in fake_host.root_volumes.filled


@pytest.mark.parametrize("content", [root_volumes.BLANK, root_volumes.UNFINISHED])
def test_nobody_gets_files_of_an_image_that_he_cannot_read(
    spawn: Any, fake_host: FakeHost, engine: FakeEngine, content: str
) -> None:
    """Tenants choose what Cinder says of their volumes, and the engine may have the image."""
    fake_host.volume_image_readable = False
    fake_host.root_volumes.content = content
    with pytest.raises(exception.RequestRefused, match=f"shows the user no image {GLANCE_ID}"):
        spawn()
    assert engine.containers == {}
    assert fake_host.root_volumes.filled == {}


@pytest.mark.parametrize("content", [root_volumes.IMAGE, root_volumes.FILLED])
def test_a_volume_outlives_its_image(spawn: Any, fake_host: FakeHost, content: str) -> None:
    fake_host.volume_image_readable = False
    fake_host.root_volumes.content = content
    spawn()
    assert bool(fake_host.root_volumes.filled) == (content == root_volumes.IMAGE)


def test_an_image_that_is_larger_than_the_volume_is_refused(
    spawn: Any, fake_host: FakeHost, engine: FakeEngine
) -> None:
    fake_host.root_volumes.size = fake_host.images.image.size_bytes
    with pytest.raises(nova_exception.VolumeSmallerThanMinDisk):
        spawn()
    assert engine.containers == {}
    assert fake_host.root_volumes.filled == {}
    # Nothing is written, so the size does not count.
    fake_host.root_volumes.content = root_volumes.FILLED
    spawn()


def test_a_fill_that_fails_undoes_the_build(
    spawn: Any, backed: Any, fake_host: FakeHost, engine: FakeEngine
) -> None:
    fake_host.root_volumes.failure = OSError(28, "tar failed (2)")
    with pytest.raises(exception.VolumeFailed, match="tar failed"):
        spawn()
    assert engine.containers == {}
    assert not fake_host.volume_devices.held.get(backed.uuid)
    fake_host.root_volumes.failure = None
    spawn()
    assert fake_host.root_volumes.content == root_volumes.FILLED


def test_an_export_that_the_engine_cuts_off_is_not_taken_for_the_files_of_the_image(
    spawn: Any, fake_host: FakeHost, engine: FakeEngine
) -> None:
    engine.cuts_exports = True
    with pytest.raises(exception.VolumeFailed, match="did not export all files"):
        spawn()
    assert fake_host.root_volumes.content == root_volumes.UNFINISHED
    engine.cuts_exports = False
    spawn()
    assert fake_host.root_volumes.content == root_volumes.FILLED


def test_personality_files_are_refused_before_anything_is_connected(
    spawn: Any, fake_host: FakeHost
) -> None:
    with pytest.raises(exception.RequestRefused, match="personality"):
        spawn(files=[("/etc/motd", b"hi")])
    assert fake_host.volume_connector.calls == []


@pytest.mark.parametrize("kind", ["read-only", "multi-attach"])
def test_a_volume_that_others_use_is_refused(spawn: Any, fake_host: FakeHost, kind: str) -> None:
    devices = root_devices()
    (mapping,) = devices["block_device_mapping"]
    if kind == "read-only":
        mapping["connection_info"]["data"]["access_mode"] = "ro"
    else:
        mapping["connection_info"]["multiattach"] = True
    with pytest.raises(exception.RequestRefused, match="it alone has and can write"):
        spawn(devices)
    assert fake_host.volume_connector.calls == []


def test_a_damaged_file_system_does_not_start(
    driver: Any, spawn: Any, backed: Any, network_info: Any, fake_host: FakeHost, engine: FakeEngine
) -> None:
    spawn()
    driver.power_off(backed)
    fake_host.root_volumes.failure = OSError(5, "e2fsck failed (4)")
    with pytest.raises(exception.RequestRefused, match="e2fsck failed"):
        driver.power_on(None, backed, network_info, root_devices())
    assert engine.containers[f"id-nova-{backed.uuid}"].status == "exited"
    # The volume stays with the server.
    assert FIRST in fake_host.volume_devices.held[backed.uuid]


def test_a_rescue_is_refused_before_anything_is_touched(
    driver: Any, spawn: Any, backed: Any, network_info: Any, image_meta: Any, fake_host: FakeHost
) -> None:
    spawn()
    before = list(fake_host.engine.calls), list(fake_host.volume_connector.calls)
    with pytest.raises(exception.RescueRefused, match="boot from a volume"):
        driver.rescue(None, backed, network_info, image_meta, "x", root_devices(), None)
    assert (fake_host.engine.calls, fake_host.volume_connector.calls) == before


def test_a_resize_does_not_look_at_the_flavors_disk(
    driver: Any, spawn: Any, backed: Any, network_info: Any, fake_host: FakeHost
) -> None:
    spawn()
    larger = backed.flavor.obj_clone()
    larger.root_gb = 20
    devices = root_devices()
    (mapping,) = devices["block_device_mapping"]
    mapping["connection_info"]["driver_volume_type"] = "local"
    # On this host, no disk changes its size.
    assert not fake_host.enforcement.resizes_disks
    driver.migrate_disk_and_power_off(
        None, backed, driver.get_host_ip_addr(), larger, network_info, devices
    )
    assert fake_host.enforcement.kept[backed.uuid].disk_bytes == 0


@pytest.mark.parametrize("userns", ["own", "host"])
def test_a_server_on_a_volume_arrives_from_another_host(
    driver: Any, backed: Any, network_info: Any, fake_host: FakeHost, userns: str
) -> None:
    backed.migration_context = None
    backed.flavor.extra_specs = {"docker:userns": userns}
    hosts = SimpleNamespace(source_compute="h1", dest_compute="h2", cross_cell_move=False)
    move = Move("0" * 32, fakes.IMAGE.id, [], False)
    no_id = objects.ImageMeta.from_dict({"properties": {}})
    driver.finish_migration(
        *(None, hosts, backed, move.to_text(), network_info, no_id, True, {}, root_devices()),
        True,
    )
    assert fake_host.root_volumes.prepared == [backed.uuid]
    assert fake_host.root_volumes.filled == {}
    assert fake_host.engine.containers[f"id-nova-{backed.uuid}"].status == "running"


def test_an_evacuated_server_is_built_from_its_volume(
    driver: Any, backed: Any, image_meta: Any, monkeypatch: pytest.MonkeyPatch, fake_host: FakeHost
) -> None:
    monkeypatch.setattr(fake_host.backups, "fetch", lambda *_: pytest.fail("a backup was fetched"))
    root = SimpleNamespace(boot_index=0, is_volume=True)
    bdms = SimpleNamespace(root_bdm=lambda: root)
    with pytest.raises(NotImplementedError):
        driver.rebuild(*(None, backed, image_meta, [], None, {}, bdms, None, None), evacuate=True)
