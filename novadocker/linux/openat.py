# SPDX-License-Identifier: Apache-2.0
"""Privileged: files of a running container, reached without ever leaving its root.

The kernel resolves every link as within the root (openat2(2), ``RESOLVE_IN_ROOT``), whatever the
tenant does meanwhile. Nothing but plain files is opened.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from novadocker.linux import cgroup

from novadocker.linux import libc

# as the kernel, which counts each path's links anew
_MAX_LINKS = 40
_LARGEST_FILE = 1 << 20


@contextmanager
def open_root(container_id: str, pid: int) -> Iterator[int]:
    """Open the root folder of a container by its first process.

    :raises ProcessLookupError: the process is not the container's
    """
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # when the root is open: the number may have become another process's
        check_process(container_id, pid)
        yield root
    finally:
        os.close(root)


def check_process(container_id: str, pid: int) -> None:
    """Check that a process is one of a container's.

    :raises ProcessLookupError: it is not, or there is none
    """
    if cgroup.container_of_process(pid) != container_id:
        raise ProcessLookupError(f"process {pid} is not in container {container_id}")


def read_file(root: int, path: str) -> bytes | None:
    """Return the content of a plain file below a root folder; None if there is nothing.

    :raises OSError: it is no plain file, or larger than 1 MiB
    """
    with _parent(root, path) as (folder, name):
        return None if name is None else _read(folder, name)[0]


def replace_file(root: int, path: str, content: bytes) -> None:
    """Replace a plain file below a root folder as a whole; a new one gets mode 0600.

    Owner and mode stay; a new one belongs to whom the root folder belongs.

    :raises OSError: it is no plain file, or can't be replaced
    """
    with _parent(root, path, missing=True) as (folder, name):
        if name is None:
            raise OSError(f"{path!r} leads to no plain file")
        status = _read(folder, name)[1]
        # a name that the tenant can't foresee
        temporary = f".{name[:200]}.{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            with os.fdopen(descriptor, "wb") as output:
                output.write(content)
                output.flush()
                # the container's root user may be another one than the host's
                owner = status or os.fstat(root)
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
                if status is not None:
                    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
                os.fsync(descriptor)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            raise


@contextmanager
def _parent(root: int, path: str, missing: bool = False) -> Iterator[tuple[int, str | None]]:
    """Open the folder that really holds a file, with links of the last name followed.

    The name is None if the file, or a folder above it, is missing and must not be.
    """
    folder = -1
    try:
        for _ in range(_MAX_LINKS):
            parent, _, name = path.rpartition("/")
            try:
                folder = open_folder(root, parent or "/")
            except FileNotFoundError:
                if missing:
                    raise
                yield -1, None
                return
            if name in ("", ".", ".."):
                yield folder, None
                return
            try:
                path = _join(parent, os.readlink(name, dir_fd=folder))
            except FileNotFoundError:
                yield folder, name if missing else None
                return
            except OSError:
                # no link
                yield folder, name
                return
            os.close(folder)
            folder = -1
        raise OSError(f"{path!r} has too many symbolic links")
    finally:
        if folder >= 0:
            os.close(folder)


def _join(parent: str, link: str) -> str:
    return link if link.startswith("/") else f"{parent}/{link}"


def _read(folder: int, name: str) -> tuple[bytes | None, os.stat_result | None]:
    try:
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None, None
    try:
        status = os.fstat(found)
        # to open a device or a pipe has effects, and the tenant may put one here at any moment
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{name!r} is no plain file")
        with open(f"/proc/self/fd/{found}", "rb") as source:
            content = source.read(_LARGEST_FILE + 1)
    finally:
        os.close(found)
    if len(content) > _LARGEST_FILE:
        raise OSError(f"{name!r} has more than {_LARGEST_FILE} bytes")
    return content, status


@contextmanager
def open_plain(root: int, path: str) -> Iterator[int]:
    """Open a plain file below a root folder, to read it.

    :raises OSError: it is missing, or no plain file
    """
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    found = libc.openat2(root, path, flags, libc.RESOLVE_IN_ROOT)
    try:
        # to open a device or a pipe has effects
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "no plain file", path)
        opened = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(found)
    try:
        yield opened
    finally:
        os.close(opened)


def open_folder(root: int, path: str) -> int:
    """Open a folder below a root folder, without a right to read it.

    :raises OSError: it is missing, or no folder
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    return libc.openat2(root, path, flags, libc.RESOLVE_IN_ROOT)
