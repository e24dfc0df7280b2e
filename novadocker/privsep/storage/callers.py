# SPDX-License-Identifier: Apache-2.0
"""Privileged: paths and file descriptors of the calling process, which are not trusted.

A path counts only if no user but root can change it. A descriptor is duplicated (pidfd_getfd(2)),
so that the file can be used only as the caller itself can use it. Opened again by /proc/PID/fd, a
file would be opened with root's rights, for writing although the caller may only read it.
"""

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from novadocker import engine_paths
from novadocker.linux import libc, openat

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_SHORT_NAME = re.compile(rf"(?P<overlay>.*)/{engine_paths.SHORT_NAME}")
_SHORT_TARGET = re.compile(rf"\.\./(?P<layer>{engine_paths.LAYER_ID}(?:-init)?/diff)")


@contextmanager
def pipe(target: tuple[int, int], access: int) -> Iterator[int]:
    """Yield a descriptor of the caller's end of a pipe; its reads and writes block.

    :param target: a process id, and the process's file descriptor
    :param access: ``os.O_RDONLY`` or ``os.O_WRONLY``
    :raises ValueError: the descriptor is not that end of a pipe
    :raises OSError: the process or the descriptor does not exist
    """
    with duplicated(target) as descriptor:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode) or not allows(descriptor, access):
            raise ValueError("the descriptor is not the right end of a pipe")
        # Because a duplicate shares the flag O_NONBLOCK with the caller, the same pipe is opened
        # again. The flag keeps that from waiting for the other end.
        flags = access | os.O_NONBLOCK | os.O_CLOEXEC
        end = os.open(f"/proc/self/fd/{descriptor}", flags)
    try:
        os.set_blocking(end, True)
        yield end
    finally:
        os.close(end)


@contextmanager
def empty_file(target: tuple[int, int]) -> Iterator[int]:
    """Yield a duplicate of the caller's descriptor of an empty file without a name.

    :param target: as for ``pipe``
    :raises ValueError: the file is not empty, has a name, or is not open for writing
    :raises OSError: the process or the descriptor does not exist
    """
    with duplicated(target) as descriptor:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size or status.st_nlink:
            raise ValueError("the target is not an empty file without a name")
        if not allows(descriptor, os.O_WRONLY):
            raise ValueError("the target is not open for writing")
        yield descriptor


@contextmanager
def duplicated(target: tuple[int, int]) -> Iterator[int]:
    """Yield a duplicate of a process's file descriptor, which shares its offset and access.

    :param target: as for ``pipe``
    :raises OSError: the process or the descriptor does not exist
    """
    pid, number = target
    process = os.pidfd_open(pid)
    try:
        descriptor = libc.pidfd_getfd(process, number)
    finally:
        os.close(process)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def allows(descriptor: int, access: int) -> bool:
    """Return True if a descriptor is open for this access, or for both reading and writing."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    return not flags & os.O_PATH and flags & os.O_ACCMODE in (access, os.O_RDWR)


@contextmanager
def opened(path: str) -> Iterator[int]:
    """Open the directory of a layer, a volume or a config drive for reading.

    The directory itself may belong to a tenant, as the root directory of a container.

    :raises PermissionError: users other than root can change the path
    :raises OSError: the directory does not exist, or is a link
    """
    if short := _SHORT_NAME.fullmatch(path):
        path = f"{short['overlay']}/{_short_target(path)}"
    above, _, name = path.rpartition("/")
    with openat.trusted(above) as folder:
        # A volume may be a mount.
        descriptor = openat.open_inside(folder, name, _DIRECTORY, mounts=True)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _short_target(path: str) -> str:
    """Return the directory of a layer's short name, relative to that of the storage driver."""
    links, _, name = path.rpartition("/")
    with openat.trusted(links) as folder:
        found = _SHORT_TARGET.fullmatch(os.readlink(name, dir_fd=folder))
    if not found:
        raise OSError(errno.EINVAL, "the link is not a short name of the engine", path)
    return found["layer"]
