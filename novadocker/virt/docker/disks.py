# SPDX-License-Identifier: Apache-2.0
"""The size of a container's file system while it lives, for which the engine has no request.

With the storage driver btrfs a container's root is a subvolume with a quota group. The engine
writes the size down and sets it again at each start, so both have to be changed.
"""

import errno
import fcntl
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from oslo_concurrency import processutils
from oslo_log import log as logging

from novadocker import privsep
from novadocker.privsep import arguments
from novadocker.virt.docker import mounts
from novadocker.virt.docker.model import EngineInfo

LOG = logging.getLogger(__name__)

_MOUNT_ID = re.compile(r"[0-9a-f]{64}")
_SIZES = range(1, (1 << 60) + 1)

# linux/btrfs.h: BTRFS_IOC_QUOTA_RESCAN, struct btrfs_ioctl_quota_rescan_args
_QUOTA_RESCAN = 0x4040942C
_QUOTA_RESCAN_BYTES = 64


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
        count_again(info.data_root)


def lost_count(info: EngineInfo, sysfs: Path = Path("/sys/fs/btrfs")) -> bool:
    """Tell whether the kernel has stopped to count, and so to limit, what disks hold.

    Newer kernels do, some time after the engine has deleted a container. Needs no privilege.
    """
    if info.storage_driver != "btrfs":
        return False
    device = Path(mounts.mount_of(info.data_root).device).resolve().name
    return any(
        (found.parents[1] / "qgroups/inconsistent").read_text().strip() == "1"
        for found in sysfs.glob(f"*/devices/{device}")
        if (found.parents[1] / "qgroups/inconsistent").exists()
    )


@privsep.network_pctxt.entrypoint
def count_again(data_root: str) -> None:
    """Let the kernel count anew what each container's disk holds, in the background.

    :param data_root: of an engine with the storage driver btrfs
    :raises ValueError: that is no path
    """
    descriptor = os.open(arguments.folder(data_root), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, _QUOTA_RESCAN, bytes(_QUOTA_RESCAN_BYTES))
    except OSError as error:
        # it does so already
        if error.errno != errno.EINPROGRESS:
            raise
    finally:
        os.close(descriptor)


def read_disk(data_root: str, container_id: str) -> Disk:
    """Return the size of a container's file system and how much of it is in use.

    What the image has counts, as it does on the disk of a virtual machine.

    :param data_root: of the engine
    :raises ValueError: an argument is not well-formed
    :raises FileNotFoundError: the engine keeps no such container on btrfs
    """
    size, used = _read_disk(data_root, container_id)
    return Disk(size, used)


@privsep.network_pctxt.entrypoint
def resize_disk(data_root: str, container_id: str, size: int) -> None:
    """Change the size of a container's file system, running or not, now and for later starts.

    It can be set below what is in use, so that nothing more can be written: ask ``read_disk``
    before.

    :param size: in bytes
    :raises ValueError: an argument is not well-formed
    :raises FileNotFoundError: the engine keeps no such container on btrfs
    """
    arguments.number(_SIZES, size)
    subvolume, quota = _paths(data_root, container_id)
    _replace(quota, str(size))
    number, _ = processutils.execute("btrfs", "inspect-internal", "rootid", str(subvolume))
    # by number, from outside: asked in the subvolume it would have to write in one that is full
    processutils.execute("btrfs", "qgroup", "limit", str(size), f"0/{int(number)}", data_root)


@privsep.network_pctxt.entrypoint
def _read_disk(data_root: str, container_id: str) -> tuple[int, int]:
    subvolume, _ = _paths(data_root, container_id)
    # without --sync what was written last is not counted yet
    output, _ = processutils.execute(
        *("btrfs", "qgroup", "show", "--raw", "-r", "-f", "--sync", str(subvolume))
    )
    _, used, _, size = output.strip().splitlines()[-1].split()[:4]
    return (0 if size == "none" else int(size)), int(used)


def _paths(data_root: str, container_id: str) -> tuple[Path, Path]:
    """Return a container's subvolume and the file with its size (moby/daemon/graphdriver)."""
    root, container = Path(arguments.folder(data_root)), arguments.container_id(container_id)
    mount_id = (root / "image/btrfs/layerdb/mounts" / container / "mount-id").read_text()
    if not _MOUNT_ID.fullmatch(mount_id):
        raise ValueError(f"{mount_id!r} is no id of a mount")
    return root / "btrfs/subvolumes" / mount_id, root / "btrfs/quotas" / mount_id


def _replace(path: Path, content: str) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    with os.fdopen(descriptor, "w") as output:
        output.write(content)
    os.rename(temporary, path)
