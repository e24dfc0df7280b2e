# SPDX-License-Identifier: Apache-2.0
"""Privileged: files that the engine writes while it unpacks an image's layers.

The engine unpacks a sparse file as zeros, as many as the header in the layer has, and does not end
before the last one, whether anyone still waits for the image. A layer of some hundred bytes could
fill the disk of the host.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from novadocker import engine_paths, privsep
from novadocker.linux import cgroup, openat
from novadocker.privsep import arguments
from novadocker.privsep.storage import callers

_LAYER = re.compile(engine_paths.LAYER_ID)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_SECONDS = range(1 << 40)
_LARGEST_OFFSET = 62


@dataclass(frozen=True)
class _Written:
    """A file that a process has open for writing.

    :ivar path: as the process has it; None if it is too long for the kernel to tell
    """

    process: int
    number: int
    key: tuple[int, int]
    path: str | None


@privsep.storage_pctxt.entrypoint
def begins(data_root: str, since: int) -> list[int]:
    """Return when the engine began each layer in which it writes a file now.

    The times are in seconds since 1970, one for each file. Layers of other storage drivers than
    overlay2 are not found.

    :param since: begin of the oldest layer that counts
    :raises ValueError: an argument is malformed
    :raises OSError: the data root cannot be read
    """
    first = arguments.number(_SECONDS, since)
    return [begin for _, begin in _find(arguments.folder(data_root), range(first, _SECONDS.stop))]


@privsep.storage_pctxt.entrypoint
def break_off(data_root: str, since: int, until: int) -> int:
    """Empty what the engine writes in layers, and let its next write to each file fail (EFBIG).

    The engine then deletes the layer. Return the number of files.

    :param since: begin of the oldest layer that counts, in seconds since 1970
    :param until: begin of the newest layer that counts
    :raises ValueError: an argument is malformed
    :raises OSError: the data root cannot be read
    """
    broken = 0
    first, last = arguments.number(_SECONDS, since), arguments.number(_SECONDS, until)
    for file, _ in _find(arguments.folder(data_root), range(first, last + 1)):
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


def _find(data_root: str, period: range) -> Iterator[tuple[_Written, int]]:
    """Yield each file that is written in a layer begun in the period, and the layer's begin."""
    with openat.trusted(data_root) as root:
        try:
            layers = openat.open_inside(root, "overlay2", _FOLDER, mounts=True)
        except FileNotFoundError:
            return
    try:
        names = dict(_layers(layers, period))
        if not names:
            return
        prefix = f"{data_root}/overlay2/"
        for file in _written(os.fstat(layers).st_dev):
            for name, begin in names.items():
                if _is_in(file, layers, name, prefix):
                    yield file, begin
    finally:
        os.close(layers)


def _layers(layers: int, period: range) -> Iterator[tuple[str, int]]:
    for name in os.listdir(layers):
        if _LAYER.fullmatch(name):
            with suppress(FileNotFoundError):
                begin = int(os.stat(name, dir_fd=layers, follow_symlinks=False).st_mtime)
                if begin in period:
                    yield name, begin


def _is_in(file: _Written, layers: int, name: str, prefix: str) -> bool:
    """Return True if a file is in a layer.

    The engine changes its root directory to the layer's, so the process has the path from there.
    """
    with suppress(OSError), openat.held(layers, f"{name}/diff") as folder:
        if file.path is None:
            return _key(folder.status) in _roots(file.process)
        # Alone, because with the layer's directory it may be too long for one call.
        path = file.path.removeprefix(f"{prefix}{name}/diff").lstrip("/")
        with openat.held(folder.descriptor, path) as found:
            return _key(found.status) == file.key
    return False


def _roots(process: int) -> Iterator[tuple[int, int]]:
    """Yield the root directories of the threads of a process."""
    for thread in os.listdir(f"/proc/{process}/task"):
        # A thread may end at any time.
        with suppress(OSError):
            yield _key(os.stat(f"/proc/{process}/task/{thread}/root"))


def _written(device: int) -> Iterator[_Written]:
    """Yield the regular files of a file system that processes have open for writing.

    Leaves out the processes of servers, which may be many.
    """
    own = cgroup.container_of_process(os.getpid())
    for process, container in cgroup.processes():
        if container not in (None, own):
            continue
        # A process may end, and close files, at any time.
        with suppress(OSError):
            for number in os.listdir(f"/proc/{process}/fd"):
                with suppress(OSError):
                    path = f"/proc/{process}/fd/{number}"
                    status = os.stat(path)
                    # The permissions of the link are those of the descriptor (proc(5)).
                    writes = os.lstat(path).st_mode & stat.S_IWUSR
                    if writes and status.st_dev == device and stat.S_ISREG(status.st_mode):
                        yield _Written(process, int(number), _key(status), _target(path))


def _target(link: str) -> str | None:
    try:
        return os.readlink(link)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return None


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
