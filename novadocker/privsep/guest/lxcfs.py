# SPDX-License-Identifier: Apache-2.0
"""A privileged function that replaces a container's mounts of lxcfs after lxcfs was restarted.

A bind mount of a file of lxcfs fails when the process that served it ends. So the file of the new
process is mounted in its place in the container's mount namespace, without a restart.
"""

import io
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from novadocker import privsep
from novadocker.linux import libc, namespaces, openat
from novadocker.privsep import arguments

FILESYSTEM = "fuse.lxcfs"

# The driver mounts these paths of lxcfs at the same paths in a container.
_VIEWED = re.compile(r"/proc/[a-z]+|/sys/devices/system/cpu")

_READ_ONLY_BIND = libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY | libc.MS_NOSUID | libc.MS_NODEV


@dataclass(frozen=True)
class Mounted:
    """A mount of lxcfs: its device number, the path within lxcfs, and the mount point."""

    device: str
    root: str
    point: str


@privsep.view_pctxt.entrypoint
def restore_view(container_id: str, pid: int, source: str) -> int:
    """Replace a running container's mounts of a former lxcfs process.

    :param pid: process id of the container's first process
    :param source: mount point of lxcfs on the host
    :returns: number of replaced mounts
    :raises ValueError: an argument is malformed, or lxcfs is not mounted at ``source``
    :raises OSError: the kernel refused, or the process does not belong to the container
    """
    container, process = arguments.container_id(container_id), arguments.process(pid)
    folder = arguments.folder(source)
    current = [m for m in _mounts("self") if m.point == folder and m.root == "/"]
    if not current:
        raise ValueError(f"lxcfs is not mounted at {folder!r}")
    with openat.pinned(process) as pidfd:
        namespace = os.open(f"/proc/{process}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            stale = [
                mount
                for mount in _mounts(str(process))
                if mount.device != current[-1].device
                and mount.root == mount.point
                and _VIEWED.fullmatch(mount.point)
            ]
            openat.check_process(container, process, pidfd)
            if stale:
                namespaces.run_in_thread(_replace, namespace, folder, [m.point for m in stale])
        finally:
            os.close(namespace)
    return len(stale)


def _mounts(process: str) -> Iterator[Mounted]:
    yield from parse_mounts(Path(f"/proc/{process}/mountinfo").read_bytes())


def parse_mounts(mountinfo: bytes) -> Iterator[Mounted]:
    """Yield the mounts of lxcfs in a file in the format of proc_pid_mountinfo(5).

    In a path, the kernel escapes spaces, tabs, line feeds and backslashes only, so a line ends at a
    line feed alone, and a field at a space.

    A tenant mounts what it likes at long paths, so the lines of other mounts are not decoded.
    """
    for line in io.BytesIO(mountinfo):
        fields, _, kind = line.partition(b" - ")
        if kind.startswith(f"{FILESYSTEM} ".encode()):
            _, _, device, root, point, *_ = map(os.fsdecode, fields.split(b" ", 5))
            yield Mounted(device, root, point)


def _replace(namespace: int, source: str, points: list[str]) -> None:
    """Mount files of lxcfs, read-only, at the same paths in a mount namespace.

    The kernel resolves the mount points below the root of that namespace, so a symbolic link in the
    container can redirect a mount only within the container.
    """
    trees: dict[str, int] = {}
    try:
        for point in points:
            # If the new release of lxcfs lacks a file, the container gets the host's file.
            with suppress(FileNotFoundError):
                trees[point] = libc.clone_mount(source + point)
        # setns(2) refuses a thread that shares its root and working directory with other threads.
        libc.unshare(libc.CLONE_FS)
        libc.setns(namespace, libc.CLONE_NEWNS)
        for point in points:
            libc.umount(point, libc.MNT_DETACH | libc.UMOUNT_NOFOLLOW)
            if point in trees:
                libc.attach_mount(trees[point], point)
                libc.mount("", point, _READ_ONLY_BIND)
    finally:
        for tree in trees.values():
            os.close(tree)
