# SPDX-License-Identifier: Apache-2.0
"""Privileged: sending an instance's directories to another host, and staging them there.

Staged data is beside the engine's own directories, on the same file system, so that a rename moves
it into a new container, however much it is. Each function checks its arguments.
"""

import io
import os
import re
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from novadocker import engine_paths, naming, privsep
from novadocker.linux import libc, openat, pipes, walk
from novadocker.privsep import arguments
from novadocker.privsep.storage import callers, drive_files, tree_stream
from novadocker.privsep.storage.allowance import Allowance
from novadocker.runtime import record

FOLDER = "novadocker-staging"
DRIVES = Path(record.CONFIG_DRIVES)

# Numbers of a move's directories: the container's, its volumes' and its config drive's.
_FOLDERS = range(1000)
_SIZES = range(1 << 63)
# The directory of a container, of a volume, of a config drive.
_SERVERS_FOLDER = re.compile(
    rf"{engine_paths.IMAGE_LAYER_PATH}|{engine_paths.VOLUME_PATH}"
    r"|/(?:[\w.-]+/)+novadocker/config-drives/[\w.-]+/[0-9a-f-]{36}"
)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY

# The sender is silent while it looks for changes in millions of files, or writes a large file's
# dirty pages to the disk.
_STALL_SECONDS = 900.0
# Less than the timeout of the context, so that the caller never gives up before the stream ends.
_STREAM_SECONDS = 3500.0

_lock = threading.Lock()
# What was read for each move, for the changes that follow.
_readers: dict[str, tree_stream.Reader] = {}
# What the staged data of each move may take; a move has several streams.
_allowances: dict[str, Allowance] = {}


@privsep.transfer_pctxt.entrypoint
def send_folders(token: str, folders: Sequence[str], target: tuple[int, int], live: bool) -> int:
    """Write an instance's directories to a pipe; in later calls for a move, what changed since.

    :param token: names the move
    :param target: a process id, and the process's file descriptor of the pipe
    :param live: whether the instance may run; then another call without it must follow
    :returns: the bytes of content
    :raises ValueError: an argument is malformed, or the descriptor is not of a pipe for writing
    :raises PermissionError: users other than root can change the path of a directory
    :raises OSError: a directory cannot be read, or the pipe has no reader
    """
    arguments.text(naming.TOKEN, token)
    places = [_servers_folder(folder) for folder in arguments.items(folders)]
    end, running = arguments.open_file(target), arguments.flag(live)
    with _lock:
        reader = _readers.setdefault(token, tree_stream.Reader(places))
    with callers.pipe(end, os.O_WRONLY) as pipe, open(pipe, "wb", closefd=False) as stream:
        return reader.write(stream, running)


@privsep.transfer_pctxt.entrypoint
def forget_folders(token: str) -> None:
    """Forget what was read for a move. Does nothing if the move is unknown."""
    arguments.text(naming.TOKEN, token)
    with _lock:
        _readers.pop(token, None)


@privsep.transfer_pctxt.entrypoint
def receive_folders(
    data_root: str, instance_uuid: str, token: str, source: tuple[int, int], most: int
) -> None:
    """Apply the stream of ``send_folders`` to the staged directories of a move, and sync the disk.

    :param data_root: the engine's
    :param source: a process id, and the process's file descriptor of a pipe
    :param most: bytes that all streams of the move may take on the disk; 0 means no bound
    :raises ValueError: an argument is malformed, or the descriptor is not of a pipe for reading
    :raises PermissionError: users other than root can change the data root
    :raises StreamError: the stream is malformed, ends too early, or has more data than allowed
    :raises TimeoutError: the stream stalls
    :raises OSError: the data cannot be written
    """
    end, name = arguments.open_file(source), _name(instance_uuid, token)
    root, bound = arguments.folder(data_root), arguments.number(_SIZES, most)
    with _lock:
        allowance = _allowances.setdefault(name, Allowance(bound))
    with callers.pipe(end, os.O_RDONLY) as pipe, _staged(root, name, create=True) as top:
        tree_stream.Writer(top, allowance).apply(io.BufferedReader(_Timed(pipe)))
        # Each call syncs, so that the last one, in the downtime, has little to write.
        libc.syncfs(top)


class _Timed(io.RawIOBase):
    """A pipe whose reads fail when the writer stalls."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._end = time.monotonic() + _STREAM_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        pipes.await_data(self._descriptor, min(_STALL_SECONDS, self._end - time.monotonic()))
        return os.readv(self._descriptor, [buffer])


@privsep.transfer_pctxt.entrypoint
def adopt_folder(data_root: str, instance_uuid: str, token: str, number: int, target: str) -> bool:
    """Replace a directory of a new container by a staged directory; return True if it was done.

    False means that an earlier call did it; then no other directory is changed.

    :raises ValueError: an argument is malformed
    :raises PermissionError: users other than root can change a path
    :raises OSError: nothing is staged for the move, the directory cannot be moved, or it has what
        no config drive has
    """
    above, _, last = _servers_folder(target).rpartition("/")
    number_name = str(arguments.number(_FOLDERS, number))
    name, root = _name(instance_uuid, token), arguments.folder(data_root)
    is_drive = _is_drive(target)
    if is_drive:
        _close_to_others(above)
    with (
        _staged(root, name) as staged,
        # The destination may have had no config drive before.
        openat.trusted(above, create=is_drive) as parent,
    ):
        try:
            # A symbolic link would become the container's directory.
            folder = openat.open_inside(staged, number_name, _DIRECTORY)
        except FileNotFoundError:
            return False
        try:
            drive = drive_files.read(folder) if is_drive else None
        finally:
            os.close(folder)
        if drive is None:
            _clear(parent, last)
            # The directory itself, so that a crash never leaves a part of it.
            os.rename(number_name, last, src_dir_fd=staged, dst_dir_fd=parent)
        else:
            drive_files.write(Path(target), drive)
            _sync(parent, last)
            walk.remove(staged, number_name)
    return True


def _sync(parent: int, name: str) -> None:
    folder = openat.open_inside(parent, name, _DIRECTORY)
    try:
        libc.syncfs(folder)
    finally:
        os.close(folder)


def _close_to_others(path: str) -> None:
    """Remove other users' write permission from a directory of root, which old releases gave.

    Does nothing if the directory does not exist.

    :raises PermissionError: users other than root can change the path of the directory
    :raises OSError: a component of the path is a symbolic link
    """
    above, _, last = path.rpartition("/")
    with suppress(FileNotFoundError), openat.trusted(above) as parent:
        descriptor = openat.open_inside(parent, last, _DIRECTORY)
        try:
            status = os.fstat(descriptor)
            if status.st_uid == os.geteuid():
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~0o022)
        finally:
            os.close(descriptor)


def _clear(parent: int, name: str) -> None:
    """Create a directory, or delete all in it."""
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent)
    # A volume may be a mount.
    folder = openat.open_inside(parent, name, _DIRECTORY, mounts=True)
    try:
        walk.empty(folder)
    finally:
        os.close(folder)


@privsep.transfer_pctxt.entrypoint
def discard_folders(data_root: str, instance_uuid: str) -> None:
    """Delete all staged data of an instance. Does nothing if there is none.

    :raises ValueError: an argument is malformed
    :raises PermissionError: users other than root can change the data root
    """
    root, prefix = arguments.folder(data_root), f"{arguments.instance_uuid(instance_uuid)}."
    with _lock:
        for name in [name for name in _allowances if name.startswith(prefix)]:
            del _allowances[name]
    with suppress(FileNotFoundError), openat.trusted(root) as top:
        folder = openat.open_inside(top, FOLDER, _DIRECTORY)
        try:
            for name in os.listdir(folder):
                if name.startswith(prefix):
                    walk.remove(folder, name)
        finally:
            os.close(folder)
        with suppress(OSError):
            os.rmdir(FOLDER, dir_fd=top)


def _name(instance_uuid: object, token: object) -> str:
    return f"{arguments.instance_uuid(instance_uuid)}.{arguments.text(naming.TOKEN, token)}"


@contextmanager
def _staged(data_root: str, name: str, create: bool = False) -> Iterator[int]:
    """Open the directory with the staged data of a move.

    :param create: whether to create it if it does not exist
    :raises ValueError: the directory is not the data root of an engine
    :raises PermissionError: users other than root can change the data root
    :raises OSError: the directory does not exist, or is a link
    """
    with ExitStack() as opened:
        folder = opened.enter_context(openat.trusted(data_root))
        if not _is_folder(folder, str(engine_paths.overlay(Path()))):
            raise ValueError(f"{data_root!r} is not the data root of an engine with overlay2")
        for inner in (FOLDER, name):
            if create:
                with suppress(FileExistsError):
                    os.mkdir(inner, 0o700, dir_fd=folder)
            folder = openat.open_inside(folder, inner, _DIRECTORY)
            opened.callback(os.close, folder)
        yield folder


def _is_folder(parent: int, name: str) -> bool:
    try:
        with openat.held(parent, name, mounts=True) as found:
            return stat.S_ISDIR(found.status.st_mode)
    except FileNotFoundError:
        return False


def _servers_folder(value: object) -> str:
    path = arguments.without_detours(arguments.text(_SERVERS_FOLDER, value))
    # The directory of a drive is named by its host and its server.
    if _is_drive(path) and Path(path).parents[1] != DRIVES:
        raise ValueError(f"{path!r} is not below {DRIVES}")
    return path


def _is_drive(path: str) -> bool:
    return "/config-drives/" in path
