# SPDX-License-Identifier: Apache-2.0
"""The size of a container's file system while it lives, for which the engine has no request.

With the storage driver btrfs a container's root is a subvolume with a quota group. The engine
writes the size down and sets it again at each start, so both have to be changed.
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
    """A container's file system in bytes; a size of 0 is no limit."""

    size: int
    used: int


def can_resize(info: EngineInfo) -> bool:
    """Tell whether the size of a container's file system can be changed after its creation."""
    return info.storage_driver == "btrfs"


def keep_limited(info: EngineInfo) -> None:
    """See to it that the limits of disks are kept; to be called now and then."""
    if lost_count(info):
        LOG.info("The kernel counts anew what the servers' disks hold")
        btrfs.count_again(info.data_root)


def lost_count(info: EngineInfo, sysfs: Path = Path("/sys/fs/btrfs")) -> bool:
    """Tell whether the kernel has stopped to count, and so to limit, what disks hold.

    Newer kernels do, some time after the engine has deleted a container. Needs no privilege.
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
    """Return the size of a container's file system and how much of it is in use.

    What the image has counts, as it does on the disk of a virtual machine.

    :param data_root: of the engine
    :raises ValueError: an argument is not well-formed
    :raises FileNotFoundError: the engine keeps no such container on btrfs
    """
    size, used = btrfs.read_size_and_usage(data_root, container_id)
    return Disk(size, used)
