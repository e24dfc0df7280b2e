# SPDX-License-Identifier: Apache-2.0
"""Cinder's volumes of an instance as frozen dataclasses, made by pure functions."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nova.virt import driver

from novadocker import exception, naming
from novadocker.linux.cgroup import DiskRates
from novadocker.runtime import record

ROOT_DEVICE = "/dev/vda"
"""The name of the root disk in Nova, which determines the names of the volumes."""

LOCAL = "local"
"""The kind of volumes that every host has as devices, so a change of the attachment is no loss."""


# Names of libvirt's limits that the kernel's control groups do not have.
_BURST = re.compile(r"(?:total|read|write)_(?:bytes|iops)_sec_max(?:_length)?|size_iops_sec")
# The limit of the privileged function.
_LARGEST_RATE = 1 << 62

RAW, MOUNT = "raw", "mount"
"""Values of ``[docker] volume_modes``: block devices in servers, and mounted file systems."""


@dataclass(frozen=True)
class Volume:
    """A volume of an instance.

    :ivar path: the path in the instance, such as ``/dev/vdb``
    :ivar kind: ``driver_volume_type`` of the connection, such as ``iscsi``
    :ivar properties: what os-brick needs to connect the volume
    :ivar shared: True if several instances may have the volume at the same time
    :ivar root: True if the instance boots from the volume
    :ivar rates: limits of the volume's type for the front end
    """

    id: str
    path: str
    kind: str
    properties: Mapping[str, Any] = field(repr=False)
    writable: bool = True
    shared: bool = False
    root: bool = False
    rates: DiskRates = field(default_factory=DiskRates)

    @property
    def is_local(self) -> bool:
        """True if the connection to the volume does not depend on its attachment."""
        return self.kind == LOCAL


def from_connection(connection_info: Mapping[str, Any], path: str, *, root: bool = False) -> Volume:
    """Return the volume of a connection that Cinder describes.

    :param root: whether the instance boots from the volume
    :raises VolumeRefused: the driver cannot attach the volume
    """
    properties = connection_info.get("data") or {}
    found = str(properties.get("volume_id") or connection_info.get("serial") or "")
    if not naming.UUID.fullmatch(found):
        raise exception.VolumeRefused(volume_id=found, reason="its connection has no volume id")
    if not record.is_disk_path(path):
        raise exception.VolumeRefused(
            volume_id=found, reason=f"{path} is not the name of a disk such as /dev/vdb"
        )
    if properties.get("encrypted"):
        raise exception.VolumeRefused(
            volume_id=found, reason="the Docker driver does not decrypt volumes"
        )
    writable = properties.get("access_mode", "rw") != "ro"
    shared = bool(connection_info.get("multiattach"))
    if root and (shared or not writable):
        raise exception.VolumeRefused(
            volume_id=found,
            reason="a server boots only from a volume that it alone has and can write",
        )
    return Volume(
        id=found,
        path=path,
        kind=str(connection_info.get("driver_volume_type", "")),
        properties=properties,
        writable=writable,
        shared=shared,
        root=root,
        rates=_rates(found, properties.get("qos_specs") or {}),
    )


def _rates(volume_id: str, specs: Mapping[str, Any]) -> DiskRates:
    """Return the limits that Cinder asks the hypervisor to keep.

    A total becomes the rate of reads and of writes, because the kernel counts them separately.

    :raises VolumeRefused: the driver cannot keep a limit
    """
    bursts = sorted(name for name in specs if _BURST.fullmatch(name))
    if bursts:
        raise exception.VolumeRefused(
            volume_id=volume_id, reason=f"the host has no bursts of disks ({', '.join(bursts)})"
        )
    try:
        rates = {
            f"{direction}_{unit}": int(
                specs.get(f"total_{unit}_sec") or specs.get(f"{direction}_{unit}_sec") or 0
            )
            for direction in ("read", "write")
            for unit in ("bytes", "iops")
        }
    except ValueError as error:
        raise exception.VolumeRefused(
            volume_id=volume_id, reason=f"a limit of its type is malformed: {error}"
        ) from error
    if not all(0 <= rate <= _LARGEST_RATE for rate in rates.values()):
        raise exception.VolumeRefused(
            volume_id=volume_id, reason="a limit of its type is out of range"
        )
    return DiskRates(**rates)


def mappings(block_device_info: Mapping[str, Any] | None) -> Sequence[Any]:
    """Return Nova's mappings of volumes, which are dictionaries that Nova's database can save."""
    found: Sequence[Any] = driver.block_device_info_get_mapping(block_device_info)
    return found


def from_mapping(mapping: Mapping[str, Any]) -> Volume:
    """Return the volume of one of Nova's mappings.

    :raises VolumeRefused: the driver cannot attach the volume
    """
    return from_connection(
        mapping["connection_info"] or {},
        mapping["mount_device"] or "",
        root=mapping.get("boot_index") == 0,
    )


def from_block_devices(block_device_info: Mapping[str, Any] | None) -> tuple[Volume, ...]:
    """Return the volumes of an instance.

    :raises VolumeRefused: the driver cannot attach one of the volumes
    """
    return tuple(map(from_mapping, mappings(block_device_info)))


def root_of(block_device_info: Mapping[str, Any] | None) -> Volume | None:
    """Return the volume that an instance boots from; None if it boots from an image.

    :raises VolumeRefused: the driver cannot attach one of the volumes
    """
    return next((volume for volume in from_block_devices(block_device_info) if volume.root), None)


def check_mode(volume: Volume, modes: Collection[str]) -> None:
    """Check that the operator of the host allows what an instance does with a volume.

    :param modes: ``[docker] volume_modes``
    :raises VolumeRefused: the operator does not allow it
    """
    wanted, use = (MOUNT, "boot from it") if volume.root else (RAW, "have it as a device")
    if wanted not in modes:
        raise exception.VolumeRefused(
            volume_id=volume.id,
            reason=f"the host's operator does not let servers {use} ([docker] volume_modes has no "
            f"{wanted!r})",
        )
