# SPDX-License-Identifier: Apache-2.0
"""The file system of a path, and whether the engine can limit its containers' disks there."""

import tomllib
from pathlib import Path
from typing import Any

import psutil

from novadocker.virt.docker.model import EngineInfo

# Storage drivers that limit the size of each container on any file system.
_SIZED_DRIVERS = ("btrfs", "devicemapper", "zfs")


# The sockets of the containerd of the host's packages.
_SOCKETS = ("/run/containerd/containerd.sock", "/var/run/containerd/containerd.sock")
_ROOT = "/var/lib/containerd"


def layers_root(
    info: EngineInfo, config: Path = Path("/etc/containerd/config.toml"), socket: str = _SOCKETS[0]
) -> str:
    """Return the directory below which the files of the containers are.

    It is the engine's data root, or the root of the host's containerd if that keeps the layers. A
    containerd that the engine starts itself has its root in the data root.
    """
    if not info.containerd_store:
        return info.data_root
    if containerd_socket(info, socket) not in (*_SOCKETS, socket):
        return info.data_root
    try:
        return str(tomllib.loads(config.read_text()).get("root", _ROOT))
    except (OSError, ValueError):
        return _ROOT


def containerd_socket(info: EngineInfo, socket: str = _SOCKETS[0]) -> str:
    """Return the path of the socket of the engine's containerd; empty if it is not known.

    An engine before 27 does not tell it, but uses the host's containerd if that is installed.
    """
    return info.containerd_address or (socket if Path(socket).exists() else "")


def mount_of(path: str) -> Any:
    """Return the mount that holds ``path``, as psutil describes it (``device``, ``opts``...)."""
    resolved = Path(path).resolve()
    found = [
        mount
        for mount in psutil.disk_partitions(all=True)
        if resolved.is_relative_to(mount.mountpoint)
    ]
    # Of several mounts at one mount point, the last one hides the others.
    return max(reversed(found), key=lambda mount: len(mount.mountpoint))


def can_size_disks(info: EngineInfo) -> bool:
    """Return True if the engine can limit the size of a container's file system.

    overlay2 uses project quotas, for which XFS must be mounted with ``pquota``; the kernel shows
    that option as ``prjquota``. Other storage drivers need no mount option.
    """
    if info.storage_driver != "overlay2":
        return info.storage_driver in _SIZED_DRIVERS
    return "prjquota" in mount_of(info.data_root).opts.split(",")
