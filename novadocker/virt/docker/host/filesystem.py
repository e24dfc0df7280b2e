# SPDX-License-Identifier: Apache-2.0
"""Which file system holds a path."""

from pathlib import Path
from typing import Any

import psutil

from novadocker.virt.docker.model import EngineInfo

# storage drivers that give each container a size on any file system
_SIZED_DRIVERS = ("btrfs", "devicemapper", "zfs")


def mount_of(path: str) -> Any:
    """Return the mount that holds ``path``, as psutil describes it (``device``, ``opts``...)."""
    folder = Path(path).resolve()
    found = [
        mount
        for mount in psutil.disk_partitions(all=True)
        if folder.is_relative_to(mount.mountpoint)
    ]
    # of two mounts on one point the last is seen
    return max(reversed(found), key=lambda mount: len(mount.mountpoint))


def can_size_disks(info: EngineInfo) -> bool:
    """Tell whether the engine can limit the size of a container's file system.

    overlay2 does it by project quotas, for which XFS must be mounted with ``pquota``; the kernel
    calls that option ``prjquota``. The other drivers need nothing.
    """
    if info.storage_driver != "overlay2":
        return info.storage_driver in _SIZED_DRIVERS
    return "prjquota" in mount_of(info.data_root).opts.split(",")
