# SPDX-License-Identifier: Apache-2.0
"""Files that a tenant or a caller may replace at any moment, opened without being led elsewhere.

Below a container's root the kernel resolves every symbolic link within the root (openat2(2),
``RESOLVE_IN_ROOT``), even if the tenant changes links meanwhile. Names of an open directory are
opened without any link (``open_inside``), and paths of the engine only if no user but root can
change them (``open_trusted``). Only regular files and directories are opened; a descriptor with
``O_PATH`` holds others. The functions that open a container's root need a privilege.
"""

import errno
import os
import secrets
import select
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from novadocker.linux import cgroup, libc

# The kernel's own limit for one path (MAXSYMLINKS in linux/namei.h).
_MAX_LINKS = 40
_LARGEST_FILE = 1 << 20

# The kernel follows no link and does not leave the directory.
_INSIDE = libc.RESOLVE_BENEATH | libc.RESOLVE_NO_SYMLINKS
# User ids whose directories a path of ``open_trusted`` may have.
_TRUSTED = frozenset({0})
_CHANGES = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE})


@contextmanager
def open_root(container_id: str, pid: int) -> Iterator[int]:
    """Open the root directory of a container by its first process.

    :raises ProcessLookupError: the process is not in the container, or does not exist
    """
    with pinned(pid) as process:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            check_process(container_id, pid, process)
            yield root
        finally:
            os.close(root)


@contextmanager
def pinned(pid: int) -> Iterator[int]:
    """Open the pidfd of a process. While the process lives, no other process gets its id.

    :raises ProcessLookupError: the process does not exist
    """
    process = os.pidfd_open(pid)
    try:
        yield process
    finally:
        os.close(process)


def check_process(container_id: str, pid: int, process: int) -> None:
    """Check that a process is in a container, and that everything opened by its id is its own.

    :param process: pidfd of the process, opened before anything below /proc/PID
    :raises ProcessLookupError: the process is not in the container, or ended
    """
    owner = cgroup.container_of_process(pid)
    # The id may be another process's only if the process has ended.
    ended = select.poll()
    ended.register(process, select.POLLIN)
    if owner != container_id or ended.poll(0):
        raise ProcessLookupError(f"process {pid} is not in container {container_id}")


def read_file(root: int, path: str) -> bytes | None:
    """Return the content of a regular file below a root directory; None if it does not exist.

    :raises OSError: the file is not a regular file, or larger than 1 MiB
    """
    with _parent(root, path) as (directory, name):
        return None if name is None else _read(directory, name)[0]


def replace_file(root: int, path: str, content: bytes, new_mode: int = 0o600) -> None:
    """Replace a regular file below a root directory, so that a reader sees no partial content.

    The file keeps its owner and mode. A new file gets the owner of the root directory.

    :param new_mode: mode of a new file
    :raises OSError: the path is not that of a regular file, or the file can't be replaced
    """
    with _parent(root, path, missing=True) as (directory, name):
        if name is None:
            raise OSError(f"{path!r} is not the path of a regular file")
        status = _read(directory, name)[1]
        # The name is random, so the tenant can't create a file of this name before.
        temporary = f".{name[:200]}.{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        inside = os.fstat(root)
        with _file_ids(inside.st_uid, inside.st_gid):
            descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
        try:
            with os.fdopen(descriptor, "wb") as output:
                output.write(content)
                output.flush()
                owner = status or inside
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode) if status else new_mode)
                os.fsync(descriptor)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)
            raise


@contextmanager
def _file_ids(uid: int, gid: int) -> Iterator[None]:
    """Create files as another user.

    With user namespaces, the container's root user is another one than the host's. The host's root
    user can create no file in a file system that is mounted for the container's users.
    """
    own = os.geteuid(), os.getegid()
    if own == (uid, gid):
        yield
        return
    libc.set_file_ids(uid, gid)
    try:
        yield
    finally:
        libc.set_file_ids(*own)


@contextmanager
def _parent(root: int, path: str, missing: bool = False) -> Iterator[tuple[int, str | None]]:
    """Yield the open directory and the name of a file, after links in its last name are followed.

    The name is None if the path ends in ``..`` or the like, or if ``missing`` is false and the file
    does not exist. If ``missing`` is true, the file may be missing, but not a directory above it.

    :raises OSError: a directory above the file does not exist, or there are too many links
    """
    directory = -1
    try:
        for _ in range(_MAX_LINKS):
            parent, _, name = path.rpartition("/")
            try:
                directory = open_directory(root, parent or "/")
            except FileNotFoundError:
                if missing:
                    raise
                yield -1, None
                return
            if name in ("", ".", ".."):
                yield directory, None
                return
            try:
                path = _join(parent, os.readlink(name, dir_fd=directory))
            except FileNotFoundError:
                yield directory, name if missing else None
                return
            except OSError:
                # EINVAL: the file is not a symbolic link.
                yield directory, name
                return
            os.close(directory)
            directory = -1
        raise OSError(f"{path!r} has too many symbolic links")
    finally:
        if directory >= 0:
            os.close(directory)


def _join(parent: str, link: str) -> str:
    return link if link.startswith("/") else f"{parent}/{link}"


def _read(directory: int, name: str) -> tuple[bytes | None, os.stat_result | None]:
    try:
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None, None
    try:
        status = os.fstat(found)
        # Because opening a device or a pipe has effects, and the tenant may create one here at any
        # moment, the type is read before the file is opened for reading.
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{name!r} is not a regular file")
        with open(f"/proc/self/fd/{found}", "rb") as source:
            content = source.read(_LARGEST_FILE + 1)
    finally:
        os.close(found)
    if len(content) > _LARGEST_FILE:
        raise OSError(f"{name!r} is larger than {_LARGEST_FILE} bytes")
    return content, status


@contextmanager
def open_regular(root: int, path: str) -> Iterator[int]:
    """Open a regular file below a root directory for reading.

    :raises OSError: the file does not exist or is not a regular file
    """
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    found = libc.openat2(root, path, flags, libc.RESOLVE_IN_ROOT)
    try:
        # Because opening a device or a pipe has effects, the type is read first.
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        opened = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(found)
    try:
        yield opened
    finally:
        os.close(opened)


def open_directory(root: int, path: str) -> int:
    """Open a directory below a root directory as a starting point for paths (``O_PATH``).

    :raises OSError: the path does not exist or is not a directory
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    return libc.openat2(root, path, flags, libc.RESOLVE_IN_ROOT)


def open_inside(directory: int, path: str, flags: int, mounts: bool = False) -> int:
    """Open a file below a directory, without following a link or entering another mount.

    :param flags: as of open(2); with ``O_PATH`` a symbolic link itself can be opened
    :param mounts: whether other mounts may be entered
    :raises OSError: the file does not exist; a component is a link (ELOOP, or ENOTDIR with
        ``O_DIRECTORY``) or another mount (EXDEV)
    """
    resolve = _INSIDE if mounts else _INSIDE | libc.RESOLVE_NO_XDEV
    return libc.openat2(directory, path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, resolve)


class ChangedError(OSError):
    """A file changed while it was read."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.ESTALE, "the file changed while it was read", path)


def shows_change(error: OSError) -> bool:
    """Return True if a failed call shows that the name has another file than before, or none."""
    return error.errno in _CHANGES


@dataclass(frozen=True)
class Held:
    """A file held by a descriptor, so that it stays the same whatever its name becomes.

    :ivar descriptor: of a directory for reading, of any other file with ``O_PATH``
    """

    descriptor: int
    status: os.stat_result

    def target(self) -> str:
        """Return the target of a symbolic link."""
        return os.readlink("", dir_fd=self.descriptor)

    def attributes(self) -> dict[str, bytes]:
        """Return the extended attributes, without those that are removed meanwhile."""
        # Because the system calls for descriptors refuse one with O_PATH.
        place = f"/proc/self/fd/{self.descriptor}"
        found = {}
        for name in os.listxattr(place):
            try:
                found[name] = os.getxattr(place, name)
            except OSError as error:
                if error.errno != errno.ENODATA:
                    raise
        return found

    @contextmanager
    def opened(self, flags: int = os.O_RDONLY) -> Iterator[int]:
        """Open the file; it must be a regular file.

        :raises OSError: the file is not a regular file, or the kernel refuses
        """
        # Because opening a device or a pipe has effects.
        if not stat.S_ISREG(self.status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        descriptor = os.open(f"/proc/self/fd/{self.descriptor}", flags | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


@contextmanager
def held(directory: int, path: str, mounts: bool = False) -> Iterator[Held]:
    """Hold a file below a directory, of any type, without opening it. Raises as ``open_inside``."""
    descriptor = open_inside(directory, path, os.O_PATH, mounts)
    try:
        yield Held(descriptor, os.fstat(descriptor))
    finally:
        os.close(descriptor)


@contextmanager
def trusted(path: str, create: bool = False) -> Iterator[int]:
    """Yield the descriptor of ``open_trusted``."""
    descriptor = open_trusted(path, create)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_trusted(path: str, create: bool = False) -> int:
    """Open a directory whose path no user but root can change (``O_PATH``).

    No component is a symbolic link; each belongs to root, and no other user can write to it. A
    component above may be like /tmp, where others can only add files of their own (``S_ISVTX``).

    :param path: absolute
    :param create: whether to create missing directories, for root only
    :raises PermissionError: another user can change the path
    :raises OSError: a component does not exist, or is not a directory
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open("/", flags)
    shared = False
    try:
        for name in filter(None, path.split("/")):
            if create:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=descriptor)
            inner = libc.openat2(descriptor, name, flags, _INSIDE)
            os.close(descriptor)
            descriptor = inner
            shared = _check_owner(descriptor, path)
        if shared:
            raise _shared(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_owner(directory: int, path: str) -> bool:
    """Return True if others can add files of their own to a directory.

    :raises PermissionError: others can change the directory otherwise
    """
    status = os.fstat(directory)
    shared = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    if status.st_uid not in _TRUSTED or (shared and not status.st_mode & stat.S_ISVTX):
        raise _shared(path)
    return shared


def _shared(path: str) -> PermissionError:
    return PermissionError(
        errno.EPERM, "users other than root can change the path of the directory", path
    )
