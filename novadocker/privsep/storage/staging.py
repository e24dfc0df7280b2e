# SPDX-License-Identifier: Apache-2.0
"""Privileged entry points: a server's folders leave a host, and wait on another to be its own.

What arrives is kept beside the engine's own folders, on the same file system, so that it is moved
into a new container by renaming, however much it is. Each function checks its arguments.
"""

import errno
import os
import re
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from novadocker import privsep
from novadocker.linux import libc
from novadocker.privsep import arguments
from novadocker.privsep.storage import tree_stream

FOLDER = "novadocker-staging"

_TOKEN = re.compile(r"[0-9a-f]{32}")
# of a move: the container's, its volumes' and its config drive's
_FOLDERS = range(1000)
# of a container, of a volume, of a config drive
_SERVERS_FOLDER = re.compile(
    r"/(?:[\w.-]+/)+(?:overlay2/[0-9a-z]{25,64}/diff|volumes/[A-Za-z0-9][\w.-]+/_data"
    r"|novadocker/config-drives/[\w.-]+/[0-9a-f-]{36})"
)

_lock = threading.Lock()
# what was read already, for the difference that follows
_readers: dict[str, tree_stream.Reader] = {}


@privsep.transfer_pctxt.entrypoint
def send_folders(token: str, folders: Sequence[str], target: tuple[int, int], live: bool) -> int:
    """Write a server's folders to a pipe; with the same token again, what changed since.

    :param token: of the move
    :param target: a process, and its descriptor of the pipe
    :param live: whether the server may run; then another call must follow when it does not
    :returns: the bytes of content
    :raises ValueError: an argument is not well-formed
    :raises OSError: the folders can't be read, or nobody reads the pipe
    """
    arguments.text(_TOKEN, token)
    places = [_servers_folder(folder) for folder in arguments.items(folders)]
    pipe, running = arguments.open_file(target), arguments.flag(live)
    with _lock:
        reader = _readers.setdefault(token, tree_stream.Reader(places))
    with open(pipe, "wb") as stream:
        return reader.write(stream, running)


@privsep.transfer_pctxt.entrypoint
def forget_folders(token: str) -> None:
    """Forget what was read for a move; unknown is fine."""
    arguments.text(_TOKEN, token)
    with _lock:
        _readers.pop(token, None)


@privsep.transfer_pctxt.entrypoint
def receive_folders(
    data_root: str, instance_uuid: str, token: str, source: tuple[int, int]
) -> None:
    """Apply what ``send_folders`` wrote to the staged folders of a move; the disk has it then.

    :param data_root: the engine's
    :param source: a process, and its descriptor of a pipe
    :raises ValueError: an argument is not well-formed
    :raises trees.StreamError: what comes is not well-formed, or ends too early
    :raises OSError: it can't be written
    """
    pipe = arguments.open_file(source)
    folder = _staged(data_root, instance_uuid, token)
    folder.mkdir(0o700, parents=True, exist_ok=True)
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with open(pipe, "rb") as stream:
            tree_stream.Writer(top).apply(stream)
        # each time, so that the last has little to write
        libc.syncfs(top)
    finally:
        os.close(top)


@privsep.transfer_pctxt.entrypoint
def adopt_folder(data_root: str, instance_uuid: str, token: str, number: int, target: str) -> bool:
    """Make a staged folder one of a new container's, in place of what it has; tell whether it was.

    It was not if that is done already, and no other folder is touched then.

    :raises ValueError: an argument is not well-formed
    :raises OSError: nothing is staged for the move, or it can't be moved
    """
    place = Path(_servers_folder(target))
    name = str(arguments.number(_FOLDERS, number))
    staged = _staged(data_root, instance_uuid, token) / name
    if not staged.parent.is_dir() or place.is_symlink():
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
        # the folder itself, so that nothing is ever half there
        staged.rename(place)
    except OSError as error:
        # a config drive may be on another file system, and has nothing but plain files
        if error.errno != errno.EXDEV or "/config-drives/" not in target:
            raise
        shutil.copytree(staged, place, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(staged)
    return True


@privsep.transfer_pctxt.entrypoint
def discard_folders(data_root: str, instance_uuid: str) -> None:
    """Remove whatever is staged for a server; nothing is fine."""
    folder = Path(arguments.folder(data_root)) / FOLDER
    arguments.instance_uuid(instance_uuid)
    for found in folder.glob(f"{instance_uuid}.*"):
        shutil.rmtree(found)
    with suppress(OSError):
        folder.rmdir()


def _staged(data_root: str, instance_uuid: str, token: str) -> Path:
    root = Path(arguments.folder(data_root))
    name = f"{arguments.instance_uuid(instance_uuid)}.{arguments.text(_TOKEN, token)}"
    if not (root / "overlay2").is_dir():
        raise ValueError(f"{data_root!r} is no data root of an engine with overlay2")
    return root / FOLDER / name


def _servers_folder(value: object) -> str:
    return arguments.without_detours(arguments.text(_SERVERS_FOLDER, value))
