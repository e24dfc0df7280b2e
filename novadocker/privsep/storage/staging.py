# SPDX-License-Identifier: Apache-2.0
"""Privileged: sending an instance's directories to another host, and staging them there.

Staged data is beside the engine's own directories, on the same file system, so that a rename moves
it into a new container, however much it is. Each function checks its arguments.
"""

import errno
import io
import os
import re
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from novadocker import engine_paths, naming, privsep
from novadocker.linux import libc, pipes
from novadocker.privsep import arguments
from novadocker.privsep.storage import tree_stream

FOLDER = "novadocker-staging"

# Numbers of a move's directories: the container's, its volumes' and its config drive's.
_FOLDERS = range(1000)
# The directory of a container, of a volume, of a config drive.
_SERVERS_FOLDER = re.compile(
    rf"{engine_paths.IMAGE_LAYER_PATH}|{engine_paths.VOLUME_PATH}"
    r"|/(?:[\w.-]+/)+novadocker/config-drives/[\w.-]+/[0-9a-f-]{36}"
)

# The sender is silent while it looks for changes in millions of files, or writes a large file's
# dirty pages to the disk.
_STALL_SECONDS = 900.0
# Less than the timeout of the context, so that the caller never gives up before the stream ends.
_STREAM_SECONDS = 3500.0

_lock = threading.Lock()
# What was read for each move, for the changes that follow.
_readers: dict[str, tree_stream.Reader] = {}


@privsep.transfer_pctxt.entrypoint
def send_folders(token: str, folders: Sequence[str], target: tuple[int, int], live: bool) -> int:
    """Write an instance's directories to a pipe; in later calls for a move, what changed since.

    :param token: names the move
    :param target: a process id, and the process's file descriptor of the pipe
    :param live: whether the instance may run; then another call without it must follow
    :returns: the bytes of content
    :raises ValueError: an argument is malformed
    :raises OSError: a directory cannot be read, or the pipe has no reader
    """
    arguments.text(naming.TOKEN, token)
    places = [_servers_folder(folder) for folder in arguments.items(folders)]
    pipe, running = arguments.open_file(target), arguments.flag(live)
    with _lock:
        reader = _readers.setdefault(token, tree_stream.Reader(places))
    with open(pipe, "wb") as stream:
        return reader.write(stream, running)


@privsep.transfer_pctxt.entrypoint
def forget_folders(token: str) -> None:
    """Forget what was read for a move. Does nothing if the move is unknown."""
    arguments.text(naming.TOKEN, token)
    with _lock:
        _readers.pop(token, None)


@privsep.transfer_pctxt.entrypoint
def receive_folders(
    data_root: str, instance_uuid: str, token: str, source: tuple[int, int]
) -> None:
    """Apply the stream of ``send_folders`` to the staged directories of a move, and sync the disk.

    :param data_root: the engine's
    :param source: a process id, and the process's file descriptor of a pipe
    :raises ValueError: an argument is malformed
    :raises StreamError: the stream is malformed, or ends too early
    :raises TimeoutError: the stream stalls
    :raises OSError: the data cannot be written
    """
    pipe = arguments.open_file(source)
    folder = _staged(data_root, instance_uuid, token)
    folder.mkdir(0o700, parents=True, exist_ok=True)
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with open(pipe, "rb", buffering=0) as raw:
            tree_stream.Writer(top).apply(io.BufferedReader(_Timed(raw.fileno())))
        # Each call syncs, so that the last one, in the downtime, has little to write.
        libc.syncfs(top)
    finally:
        os.close(top)


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
    :raises OSError: nothing is staged for the move, or the directory cannot be moved
    """
    place = Path(_servers_folder(target))
    name = str(arguments.number(_FOLDERS, number))
    staged = _staged(data_root, instance_uuid, token) / name
    # A symbolic link would become the container's directory.
    if not staged.parent.is_dir() or place.is_symlink() or staged.is_symlink():
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(staged))
    if not staged.is_dir():
        return False
    place.mkdir(0o700, parents=True, exist_ok=True)
    for child in list(place.iterdir()):
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
    try:
        # The directory itself, so that a crash never leaves a part of it.
        staged.rename(place)
    except OSError as error:
        # A config drive may be on another file system, and has only regular files.
        if error.errno != errno.EXDEV or "/config-drives/" not in target:
            raise
        shutil.copytree(staged, place, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(staged)
    return True


@privsep.transfer_pctxt.entrypoint
def discard_folders(data_root: str, instance_uuid: str) -> None:
    """Delete all staged data of an instance. Does nothing if there is none.

    :raises ValueError: an argument is malformed
    """
    folder = Path(arguments.folder(data_root)) / FOLDER
    arguments.instance_uuid(instance_uuid)
    for found in folder.glob(f"{instance_uuid}.*"):
        shutil.rmtree(found)
    with suppress(OSError):
        folder.rmdir()


def _staged(data_root: str, instance_uuid: str, token: str) -> Path:
    root = Path(arguments.folder(data_root))
    name = f"{arguments.instance_uuid(instance_uuid)}.{arguments.text(naming.TOKEN, token)}"
    if not engine_paths.overlay(root).is_dir():
        raise ValueError(f"{data_root!r} is not the data root of an engine with overlay2")
    return root / FOLDER / name


def _servers_folder(value: object) -> str:
    return arguments.without_detours(arguments.text(_SERVERS_FOLDER, value))
