# SPDX-License-Identifier: Apache-2.0
"""Privileged: quota groups of containers with the storage driver btrfs."""

import errno
import fcntl
import os
from pathlib import Path

from oslo_concurrency import processutils

from novadocker import engine_paths, naming, privsep
from novadocker.linux import openat
from novadocker.linux.files import replace_file
from novadocker.privsep import arguments

_SIZES = range(1, (1 << 60) + 1)
# linux/btrfs.h: BTRFS_IOC_QUOTA_RESCAN, struct btrfs_ioctl_quota_rescan_args
_QUOTA_RESCAN = 0x4040942C
_QUOTA_RESCAN_BYTES = 64


@privsep.network_pctxt.entrypoint
def count_again(data_root: str) -> None:
    """Start a rescan of the quota groups: the kernel recounts each disk's usage in the background.

    :param data_root: of an engine with the storage driver btrfs
    :raises ValueError: the argument is not a path
    """
    with openat.trusted(arguments.folder(data_root)) as root:
        descriptor = openat.open_inside(root, ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, _QUOTA_RESCAN, bytes(_QUOTA_RESCAN_BYTES))
    except OSError as error:
        # A rescan that runs already serves as well.
        if error.errno != errno.EINPROGRESS:
            raise
    finally:
        os.close(descriptor)


@privsep.network_pctxt.entrypoint
def resize_disk(data_root: str, container_id: str, size: int) -> None:
    """Change the size of a container's file system, running or not, now and for later starts.

    The size may be less than the usage, and then nothing more can be written: call
    ``read_size_and_usage`` before.

    :param size: in bytes
    :raises ValueError: an argument is malformed
    :raises PermissionError: users other than root can change the data root
    :raises FileNotFoundError: the engine has no such container on btrfs
    """
    arguments.number(_SIZES, size)
    subvolume, quota = _paths(data_root, container_id)
    quota.parent.mkdir(mode=0o700, exist_ok=True)
    replace_file(quota, str(size).encode(), mode=0o600, sync=False)
    number, _ = processutils.execute("btrfs", "inspect-internal", "rootid", str(subvolume))
    # By the number and the data root, because a call with the subvolume's path writes in the
    # subvolume, which may be full.
    processutils.execute("btrfs", "qgroup", "limit", str(size), f"0/{int(number)}", data_root)


@privsep.network_pctxt.entrypoint
def read_size_and_usage(data_root: str, container_id: str) -> tuple[int, int]:
    """Return the size of a container's subvolume and its usage in bytes; size 0 means unlimited."""
    subvolume, _ = _paths(data_root, container_id)
    # Without --sync the kernel has not counted the latest writes yet.
    output, _ = processutils.execute(
        *("btrfs", "qgroup", "show", "--raw", "-r", "-f", "--sync", str(subvolume))
    )
    _, used, _, size = output.strip().splitlines()[-1].split()[:4]
    return (0 if size == "none" else int(size)), int(used)


def _paths(data_root: str, container_id: str) -> tuple[Path, Path]:
    """Return a container's subvolume and the file with its size."""
    root, container = Path(arguments.folder(data_root)), arguments.container_id(container_id)
    # Because only root can change the path, the paths below stay the engine's.
    with openat.trusted(str(root)):
        pass
    record = engine_paths.container_layer_record(root, "btrfs", container)
    layer = (record / "mount-id").read_text()
    if not naming.CONTAINER_ID.fullmatch(layer):
        raise ValueError(f"{layer!r} is not the name of a container's layer")
    return engine_paths.btrfs_subvolumes(root) / layer, engine_paths.btrfs_quota(root, layer)
