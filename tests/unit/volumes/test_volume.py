# SPDX-License-Identifier: Apache-2.0
"""Nova's block device mappings as volumes."""

from typing import Any

import pytest

from novadocker import exception
from novadocker.virt.docker.volumes import volume as volumes
from novadocker.virt.docker.volumes.volume import Volume

ID = "7e570000-0000-4000-8000-0000000000b1"


def connection(**data: Any) -> dict[str, Any]:
    return {
        "driver_volume_type": "iscsi",
        "data": {"target_lun": 1, "access_mode": "rw", **data},
        "serial": ID,
    }


def test_a_connection_is_a_volume() -> None:
    info = connection()
    assert volumes.from_connection(info, "/dev/vdb") == Volume(
        ID, "/dev/vdb", "iscsi", info["data"], writable=True, shared=False
    )
    assert not volumes.from_connection(connection(access_mode="ro"), "/dev/vdb").writable
    assert volumes.from_connection({**connection(), "multiattach": True}, "/dev/vdb").shared


def test_the_log_does_not_contain_the_passwords_of_a_connection() -> None:
    assert "secret" not in repr(
        volumes.from_connection(connection(auth_password="secret"), "/dev/vdb")
    )


@pytest.mark.parametrize(
    "path", ["/dev/vdb", "/dev/vdd", "/dev/vdaa", "/dev/vdad", "/dev/sda", "/dev/xvdc", "/dev/hdz"]
)
def test_names_of_disks(path: str) -> None:
    assert volumes.from_connection(connection(), path).path == path


@pytest.mark.parametrize(
    "path",
    [
        *("", "vdb", "/dev/../x", "/dev/vd", "/dev/null", "/dev/tty", "/dev/vdb1", "/dev/vdbbbb"),
        *("/dev/vdb/../../etc/x", "/dev/sd", "/dev/vdB", "/etc/vdb", "/dev/vdb\n", "/dev/d", "d"),
    ],
)
def test_other_names_are_refused(path: str) -> None:
    with pytest.raises(exception.VolumeRefused, match="is not the name of a disk"):
        volumes.from_connection(connection(), path)


def test_what_no_host_can_attach_is_refused() -> None:
    with pytest.raises(exception.VolumeRefused, match="does not decrypt"):
        volumes.from_connection(connection(encrypted=True), "/dev/vdb")
    with pytest.raises(exception.VolumeRefused, match="no volume id"):
        volumes.from_connection({}, "/dev/vdb")
    root = {"connection_info": connection(), "mount_device": "/dev/vda", "boot_index": 0}
    with pytest.raises(exception.VolumeRefused, match="does not boot from a volume"):
        volumes.from_block_devices({"block_device_mapping": [root]})


def test_block_devices() -> None:
    data = {"connection_info": connection(), "mount_device": "/dev/vdb", "boot_index": None}
    assert [each.id for each in volumes.from_block_devices({"block_device_mapping": [data]})] == [
        ID
    ]
    assert volumes.from_block_devices(None) == ()
