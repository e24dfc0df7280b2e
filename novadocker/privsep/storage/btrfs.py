# SPDX-License-Identifier: Apache-2.0
"""As root: the quota groups of containers on the storage driver btrfs."""

import errno
import fcntl
import os
from pathlib import Path

from oslo_concurrency import processutils

from novadocker import naming, privsep
from novadocker.linux import files
from novadocker.privsep import arguments

_SIZES = range(1, (1 << 60) + 1)
# linux/btrfs.h: BTRFS_IOC_QUOTA_RESCAN, struct btrfs_ioctl_quota_rescan_args
_QUOTA_RESCAN = 0x4040942C
_QUOTA_RESCAN_BYTES = 64


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
    quota.parent.mkdir(mode=0o700, exist_ok=True)
    files.replace_file(quota, str(size).encode(), mode=0o600, sync=False)
    number, _ = processutils.execute("btrfs", "inspect-internal", "rootid", str(subvolume))
    # by number, from outside: asked in the subvolume it would have to write in one that is full
    processutils.execute("btrfs", "qgroup", "limit", str(size), f"0/{int(number)}", data_root)


@privsep.network_pctxt.entrypoint
def read_size_and_usage(data_root: str, container_id: str) -> tuple[int, int]:
    """Return the size of a container's subvolume and its usage in bytes; size 0 means unlimited."""
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
    if not naming.CONTAINER_ID.fullmatch(mount_id):
        raise ValueError(f"{mount_id!r} is no id of a mount")
    return root / "btrfs/subvolumes" / mount_id, root / "btrfs/quotas" / mount_id
