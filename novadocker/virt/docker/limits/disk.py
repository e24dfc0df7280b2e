# SPDX-License-Identifier: Apache-2.0
"""The size of a container's file system, which the engine can't change after the creation.

With the storage driver btrfs, a container's root is a subvolume with a quota group. The engine
stores the size in a file and sets it again at each start, so both must be changed.
"""

from dataclasses import dataclass
from pathlib import Path

from oslo_log import log as logging

from novadocker.privsep.storage import btrfs
from novadocker.virt.docker.host import filesystem
from novadocker.virt.docker.model import EngineInfo

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Disk:
    """Size and usage of a container's file system in bytes; a size of 0 means no limit."""

    size: int
    used: int


def can_resize(info: EngineInfo) -> bool:
    """Return True if the size of a container's file system can change after its creation."""
    return info.storage_driver == "btrfs"


def restore_quotas(info: EngineInfo) -> None:
    """Start a rescan of the disks' usage if the kernel no longer limits it. Idempotent."""
    if quotas_are_inconsistent(info):
        LOG.info("Starting a btrfs quota rescan, because the kernel stopped limiting disks")
        btrfs.count_again(info.data_root)


def quotas_are_inconsistent(info: EngineInfo, sysfs: Path = Path("/sys/fs/btrfs")) -> bool:
    """Return True if the kernel no longer counts, and so no longer limits, the disks' usage.

    Newer kernels stop some time after the engine has deleted a container. Needs no privilege.
    """
    if info.storage_driver != "btrfs":
        return False
    device = Path(filesystem.mount_of(info.data_root).device).resolve().name
    return any(
        (found.parents[1] / "qgroups/inconsistent").read_text().strip() == "1"
        for found in sysfs.glob(f"*/devices/{device}")
        if (found.parents[1] / "qgroups/inconsistent").exists()
    )


def read_disk(data_root: str, container_id: str) -> Disk:
    """Return the size and usage of a container's file system.

    The image's files count, as they do on the disk of a virtual machine.

    :param data_root: the engine's data root
    :raises ValueError: an argument is malformed
    :raises FileNotFoundError: the engine has no such container on btrfs
    """
    size, used = btrfs.read_size_and_usage(data_root, container_id)
    return Disk(size, used)
