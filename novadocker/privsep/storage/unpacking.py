# SPDX-License-Identifier: Apache-2.0
"""Privileged: files that the engine writes while it unpacks an image's layers.

The engine unpacks a sparse file as zeros, as many as the header in the layer has, and does not end
before the last one, whether anyone still waits for the image. A layer of some hundred bytes could
fill the disk of the host.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from novadocker import engine_paths, privsep
from novadocker.linux import openat
from novadocker.privsep import arguments
from novadocker.privsep.storage import callers

_LAYER = re.compile(engine_paths.LAYER_ID)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_SECONDS = range(1 << 40)
_LARGEST_OFFSET = 62


@dataclass(frozen=True)
class _Written:
    """A file that a process has open for writing.

    :ivar path: as the process has it
    """

    process: int
    number: int
    key: tuple[int, int]
    path: str


@privsep.storage_pctxt.entrypoint
def count(data_root: str, since: int) -> int:
    """Return the number of files that the engine writes in layers of images now.

    Layers of other storage drivers than overlay2 are not found.

    :param since: begin of the oldest layer that counts, in seconds since 1970
    :raises ValueError: an argument is malformed
    :raises OSError: the data root cannot be read
    """
    return len(_find(arguments.folder(data_root), arguments.number(_SECONDS, since)))


@privsep.storage_pctxt.entrypoint
def break_off(data_root: str, since: int) -> int:
    """Empty the files that ``count`` counts, and let the engine's next write to each fail (EFBIG).

    The engine then deletes the layer. Return the number of files.

    :raises ValueError: an argument is malformed
    :raises OSError: the data root cannot be read
    """
    broken = 0
    for file in _find(arguments.folder(data_root), arguments.number(_SECONDS, since)):
        # The process may have closed the file meanwhile.
        with suppress(OSError), callers.duplicated((file.process, file.number)) as descriptor:
            if _key(os.fstat(descriptor)) == file.key and callers.allows(descriptor, os.O_WRONLY):
                _seek_to_the_last_byte(descriptor)
                os.ftruncate(descriptor, 0)
                broken += 1
    return broken


def _seek_to_the_last_byte(descriptor: int) -> None:
    """Move the offset, which a duplicate shares, to the end of the largest file possible."""
    offset = 0
    for bit in range(_LARGEST_OFFSET, -1, -1):
        with suppress(OSError):
            offset = os.lseek(descriptor, offset | 1 << bit, os.SEEK_SET)


def _find(data_root: str, since: int) -> list[_Written]:
    with openat.trusted(data_root) as root:
        try:
            layers = openat.open_inside(root, "overlay2", _FOLDER, mounts=True)
        except FileNotFoundError:
            return []
    try:
        names = list(_new_layers(layers, since))
        prefix = f"{data_root}/overlay2/"
        return [
            file
            for file in _written(os.fstat(layers).st_dev)
            if any(_is_in(file, layers, name, prefix) for name in names)
        ]
    finally:
        os.close(layers)


def _new_layers(layers: int, since: int) -> Iterator[str]:
    for name in os.listdir(layers):
        if _LAYER.fullmatch(name):
            with suppress(FileNotFoundError):
                if os.stat(name, dir_fd=layers, follow_symlinks=False).st_mtime >= since:
                    yield name


def _is_in(file: _Written, layers: int, name: str, prefix: str) -> bool:
    """Return True if a file is in a layer.

    The engine changes its root directory to the layer's, so the process has the path from there.
    """
    folder = f"{name}/diff"
    path = file.path.removeprefix(f"{prefix}{folder}").lstrip("/")
    try:
        descriptor = openat.open_inside(layers, f"{folder}/{path}", os.O_PATH)
    except OSError:
        return False
    try:
        return _key(os.fstat(descriptor)) == file.key
    finally:
        os.close(descriptor)


def _written(device: int) -> Iterator[_Written]:
    """Yield the regular files of a file system that processes have open for writing."""
    for process in filter(str.isdecimal, os.listdir("/proc")):
        # A process may end, and close files, at any time.
        with suppress(OSError):
            for number in os.listdir(f"/proc/{process}/fd"):
                with suppress(OSError):
                    path = f"/proc/{process}/fd/{number}"
                    status = os.stat(path)
                    # The permissions of the link are those of the descriptor (proc(5)).
                    writes = os.lstat(path).st_mode & stat.S_IWUSR
                    if writes and status.st_dev == device and stat.S_ISREG(status.st_mode):
                        yield _Written(int(process), int(number), _key(status), os.readlink(path))


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
