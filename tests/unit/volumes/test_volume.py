# SPDX-License-Identifier: Apache-2.0
"""Nova's block device mappings as volumes."""

from typing import Any

import pytest

from novadocker import exception
from novadocker.linux.cgroup import DiskRates
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
    for shared in (connection(access_mode="ro"), {**connection(), "multiattach": True}):
        root = {"connection_info": shared, "mount_device": "/dev/vda", "boot_index": 0}
        with pytest.raises(exception.VolumeRefused, match="it alone has and can write"):
            volumes.from_block_devices({"block_device_mapping": [root]})


def test_the_limits_of_a_volumes_type() -> None:
    def rates(**specs: str) -> DiskRates:
        return volumes.from_connection(connection(qos_specs=specs), "/dev/vdb").rates

    assert rates() == DiskRates()
    assert volumes.from_connection(connection(qos_specs=None), "/dev/vdb").rates == DiskRates()
    assert rates(read_bytes_sec="1048576", write_iops_sec="500") == DiskRates(
        read_bytes=1 << 20, write_iops=500
    )
    # The kernel counts reads and writes separately. Other names are the back end's.
    assert rates(total_iops_sec="300", vendor="x") == DiskRates(read_iops=300, write_iops=300)


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ({"total_bytes_sec_max": "5"}, "no bursts of disks .total_bytes_sec_max."),
        ({"read_iops_sec_max_length": "5"}, "no bursts"),
        ({"size_iops_sec": "4096"}, "no bursts"),
        ({"read_iops_sec": "many"}, "malformed"),
        ({"read_iops_sec": "-1"}, "out of range"),
        ({"read_iops_sec": str(1 << 63)}, "out of range"),
    ],
)
def test_limits_that_the_host_cannot_keep_are_refused(specs: dict[str, str], words: str) -> None:
    with pytest.raises(exception.VolumeRefused, match=words):
        volumes.from_connection(connection(qos_specs=specs), "/dev/vdb")


def test_the_operator_says_what_volumes_may_be() -> None:
    data = volumes.from_connection(connection(), "/dev/vdb")
    root = volumes.from_connection(connection(), "/dev/vda", root=True)
    volumes.check_mode(data, ["raw"])
    volumes.check_mode(root, ["mount"])
    with pytest.raises(exception.VolumeRefused, match=r"boot from it .* has no 'mount'"):
        volumes.check_mode(root, ["raw"])
    with pytest.raises(exception.VolumeRefused, match=r"have it as a device .* has no 'raw'"):
        volumes.check_mode(data, ["mount"])


def test_the_volume_that_a_server_boots_from() -> None:
    root = {"connection_info": connection(), "mount_device": "/dev/vda", "boot_index": 0}
    found = volumes.root_of({"block_device_mapping": [root]})
    assert found is not None
    assert (found.id, found.path, found.root) == (ID, "/dev/vda", True)
    assert volumes.root_of({"block_device_mapping": [{**root, "boot_index": None}]}) is None


def test_block_devices() -> None:
    data = {"connection_info": connection(), "mount_device": "/dev/vdb", "boot_index": None}
    assert [each.id for each in volumes.from_block_devices({"block_device_mapping": [data]})] == [
        ID
    ]
    assert volumes.from_block_devices(None) == ()
