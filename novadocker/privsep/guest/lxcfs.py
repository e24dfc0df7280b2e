# SPDX-License-Identifier: Apache-2.0
"""Privileged: a container's own view of /proc, given back when lxcfs was started anew.

A bind mount of a file of lxcfs belongs to the process that served it and dies with it. So the file
of the new process takes its place in the container's mount namespace, without a restart.
"""

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from novadocker import privsep
from novadocker.linux import namespaces, openat
from novadocker.privsep import arguments

FILESYSTEM = "fuse.lxcfs"

# what the driver mounts, each at its own path
_VIEWED = re.compile(r"/proc/[a-z]+|/sys/devices/system/cpu")

# the same numbers on every architecture: asm-generic/unistd.h
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
# linux/mount.h, linux/fcntl.h, sched.h, sys/mount.h
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_AT_FDCWD = -100
_CLONE_FS = 0x200
_CLONE_NEWNS = 0x20000
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_READ_ONLY_BIND = 1 | 2 | 4 | 32 | 4096  # MS_RDONLY, NOSUID, NODEV, REMOUNT, BIND

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class _Mounted:
    """A mount of lxcfs: its device, the path within lxcfs, and where it is mounted."""

    device: str
    root: str
    point: str


@privsep.view_pctxt.entrypoint
def restore_view(container_id: str, pid: int, source: str) -> int:
    """Replace what a running container has of a former lxcfs; return how many mounts those were.

    :param pid: of the container's first process
    :param source: where lxcfs is mounted on the host
    :raises ValueError: an argument is not well-formed
    :raises OSError: the kernel refused, or the process is not the container's
    """
    container, process = arguments.container_id(container_id), arguments.process(pid)
    folder = arguments.folder(source)
    current = [m for m in _mounts("self") if m.point == folder and m.root == "/"]
    if not current:
        raise ValueError(f"lxcfs is not mounted at {folder!r}")
    namespace = os.open(f"/proc/{process}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # when the namespace is open: the number may have become another process's
        openat.check_process(container, process)
        stale = [
            mount
            for mount in _mounts(str(process))
            if mount.device != current[-1].device
            and mount.root == mount.point
            and _VIEWED.fullmatch(mount.point)
        ]
        if stale:
            namespaces.run_in_thread(_replace, namespace, folder, [m.point for m in stale])
    finally:
        os.close(namespace)
    return len(stale)


def _mounts(process: str) -> Iterator[_Mounted]:
    for line in Path(f"/proc/{process}/mountinfo").read_text().splitlines():
        words, _, kind = line.partition(" - ")
        if kind.startswith(f"{FILESYSTEM} "):
            _, _, device, root, point, *_ = words.split()
            yield _Mounted(device, root, point)


def _replace(namespace: int, source: str, points: list[str]) -> None:
    """Mount files of lxcfs, read-only, at the same paths in a mount namespace.

    Paths are looked up below the root of that namespace, whose owner can mislead nobody but
    himself.
    """
    trees: dict[str, int] = {}
    try:
        for point in points:
            # one that the new release of lxcfs lacks shows the host's values rather than none
            with suppress(FileNotFoundError):
                trees[point] = _call(
                    _SYS_OPEN_TREE,
                    ctypes.c_int(_AT_FDCWD),
                    ctypes.c_char_p(os.fsencode(source + point)),
                    ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC),
                )
        # setns(2) refuses a thread that shares its root and working directory with others
        _check(_libc.unshare(_CLONE_FS), "unshare")
        _check(_libc.setns(namespace, _CLONE_NEWNS), "setns")
        for point in points:
            path = os.fsencode(point)
            _check(_libc.umount2(path, _MNT_DETACH | _UMOUNT_NOFOLLOW), point)
            if point in trees:
                _call(
                    _SYS_MOVE_MOUNT,
                    ctypes.c_int(trees[point]),
                    ctypes.c_char_p(b""),
                    ctypes.c_int(_AT_FDCWD),
                    ctypes.c_char_p(path),
                    ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
                )
                _check(_libc.mount(None, path, None, ctypes.c_ulong(_READ_ONLY_BIND), None), point)
    finally:
        for tree in trees.values():
            os.close(tree)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    _check(result, f"system call {number}")
    return result


def _check(result: int, what: str) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)
