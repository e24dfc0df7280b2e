# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import pytest

from novadocker import naming
from novadocker.recovery import copies, layers, thin
from novadocker.recovery.dataroot import DataRoot, RecoveryError

UUID = "3f1c7f0e-5a39-4b44-9a0e-1de0a97c1b55"
CONTAINER = "c" * 64
LAYER = "d" * 64
SHORT = "l/" + "A" * 26
STORED: dict[str, Any] = {
    "Config": {"Labels": {naming.LABEL_UUID: UUID, naming.LABEL_NAME: "i1"}},
    "Driver": "overlay2",
    "Image": "sha256:" + "e" * 64,
    "MountPoints": {
        "/data": {"Type": "volume", "Name": "f" * 64, "Destination": "/data"},
        "/proc/uptime": {"Type": "bind", "Name": "", "Destination": "/proc/uptime"},
    },
}


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    """A data root with one server on overlay2."""
    for folder in (
        f"containers/{CONTAINER}",
        "containers/not-one",
        f"image/overlay2/layerdb/mounts/{CONTAINER}",
        f"overlay2/{LAYER}/diff",
        "overlay2/base/diff",
        "overlay2/l",
    ):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "containers" / CONTAINER / "config.v2.json").write_text(json.dumps(STORED))
    (tmp_path / "image/overlay2/layerdb/mounts" / CONTAINER / "mount-id").write_text(LAYER)
    (tmp_path / "overlay2" / LAYER / "lower").write_text(SHORT)
    (tmp_path / "overlay2/base/link").write_text(SHORT.removeprefix("l/"))
    (tmp_path / "overlay2" / SHORT).symlink_to("../base/diff")
    return DataRoot(tmp_path)


def test_a_server_and_its_layers(root: DataRoot) -> None:
    (server,) = root.servers()
    assert (server.uuid, server.name, server.container) == (UUID, "i1", CONTAINER)
    assert [(volume.name, str(volume.destination)) for volume in server.volumes] == [
        ("f" * 64, "/data")
    ]
    assert layers.file_system(root, server).folders == (f"{LAYER}/diff", SHORT)


@pytest.mark.parametrize("wanted", [UUID, "i1", CONTAINER, CONTAINER[:12]])
def test_a_server_is_found(root: DataRoot, wanted: str) -> None:
    assert root.find(wanted).container == CONTAINER


@pytest.mark.parametrize("wanted", ["", "c", "i2"])
def test_what_is_not_found(root: DataRoot, wanted: str) -> None:
    with pytest.raises(RecoveryError, match="0 servers"):
        root.find(wanted)


def test_a_lost_short_name_is_found_by_its_layer(root: DataRoot) -> None:
    (root.path / "overlay2" / SHORT).unlink()
    assert layers.file_system(root, root.find(UUID)).folders[1] == "base/diff"


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        (f"image/overlay2/layerdb/mounts/{CONTAINER}/mount-id", "../../../etc", "names no layer"),
        (f"overlay2/{LAYER}/lower", "/etc:l/x", "is damaged"),
        (f"overlay2/{LAYER}/lower", "l/" + "B" * 26, "is missing"),
    ],
)
def test_forged_metadata_leads_nowhere(root: DataRoot, file: str, content: str, text: str) -> None:
    (root.path / file).write_text(content)
    with pytest.raises(RecoveryError, match=text):
        layers.file_system(root, root.find(UUID))


@pytest.mark.parametrize(
    "change",
    [
        {"MountPoints": {"/": {"Type": "volume", "Name": "../x", "Destination": "/"}}},
        {"MountPoints": {"x": {"Type": "volume", "Name": "x", "Destination": "relative"}}},
        {"Config": None},
        {"Config": {"Labels": ["x"]}},
    ],
)
def test_what_the_engine_can_not_have_written_is_damage(
    root: DataRoot, change: dict[str, Any]
) -> None:
    config = root.path / "containers" / CONTAINER / "config.v2.json"
    config.write_text(json.dumps({**STORED, **change}))
    (server,) = root.servers()
    assert "damaged" in server.damage
    assert server.driver == "overlay2"


def test_foreign_containers_are_no_servers(root: DataRoot) -> None:
    config = root.path / "containers" / CONTAINER / "config.v2.json"
    config.write_text(json.dumps({**STORED, "Config": {"Labels": None}}))
    assert root.servers() == []


def test_the_configuration_of_an_image() -> None:
    image = {
        "architecture": "arm64",
        "variant": "v8",
        "os": "linux",
        "config": {"Env": ["A=1"], "Cmd": ["old"], "WorkingDir": "/srv"},
        "rootfs": {"diff_ids": ["sha256:1", "sha256:2"]},
    }
    labels = {naming.LABEL_UUID: UUID, "own": "kept"}
    found = copies.image_config(image, {"Cmd": ["new"], "Labels": labels, "Tty": True}, "sha256:3")
    assert found["config"] == {
        "Env": ["A=1"],
        "Cmd": ["new"],
        "WorkingDir": "/srv",
        "Labels": {"own": "kept"},
    }
    assert found["rootfs"]["diff_ids"] == ["sha256:3"]
    assert (found["architecture"], found["variant"]) == ("arm64", "v8")


# -- devicemapper ----------------------------------------------------------------------------------


def record(root: DataRoot, name: str, content: object) -> Path:
    folder = root.path / "devicemapper" / "metadata"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder / name


def test_a_thin_device_is_the_recorded_one(root: DataRoot) -> None:
    record(root, LAYER, {"device_id": 7, "size": 1 << 20, "transaction_id": 9})
    assert thin.read_device(root, LAYER) == thin.ThinDevice(number=7, sectors=2048)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"size": 512}, "names no device"),
        ({"device_id": "7 1 1", "size": 512}, "names no device"),
        ({"device_id": 1 << 24, "size": 512}, "names no device"),
        ({"device_id": 7, "size": "1; reboot"}, "has no size"),
        ({"device_id": 7, "size": -512}, "has no size"),
        ([7], "no object"),
    ],
)
def test_a_forged_record_of_a_thin_device(root: DataRoot, content: object, text: str) -> None:
    record(root, LAYER, content)
    with pytest.raises(RecoveryError, match=text):
        thin.read_device(root, LAYER)


def test_devices_that_may_be_a_lost_one(root: DataRoot) -> None:
    record(root, "deviceset-metadata", {"next_device_id": 1})
    record(root, "base", {"device_id": 1, "size": 1024})
    record(root, "other", {"device_id": 3, "size": 2048})
    damaged = record(root, LAYER, {})
    damaged.write_text('{"dev')
    found = list(thin.unnamed_devices(root))
    assert [device.number for device in found[:4]] == [0, 2, 4, 5]
    assert {device.sectors for device in found} == {4}
    for path in damaged.parent.iterdir():
        path.write_text("")
    with pytest.raises(RecoveryError, match="all devices are damaged"):
        list(thin.unnamed_devices(root))


def test_the_blocks_of_a_pool() -> None:
    superblock = bytearray(4096)
    superblock[32:40] = (27022010).to_bytes(8, "little")
    superblock[336:340] = (128).to_bytes(4, "little")
    assert thin.block_sectors(bytes(superblock)) == 128
    with pytest.raises(RecoveryError, match="cut off"):
        thin.block_sectors(bytes(superblock[:100]))
    superblock[32] = 0
    with pytest.raises(RecoveryError, match="is damaged"):
        thin.block_sectors(bytes(superblock))


def test_a_pool_that_is_nowhere(root: DataRoot) -> None:
    record(root, LAYER, {"device_id": 7, "size": 512})
    with pytest.raises(RecoveryError, match="--thin-pool"), thin.opened(root, LAYER):
        pass
