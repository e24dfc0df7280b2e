# SPDX-License-Identifier: Apache-2.0
"""Privileged: holes of sparse files, which the image format does not have.

A snapshot marks files with holes by an extended attribute. When the engine has unpacked the
snapshot, they are full of zeros, and ``dig`` makes them sparse again.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence

from novadocker import engine_paths, privsep
from novadocker.linux import libc, openat, walk
from novadocker.privsep import arguments
from novadocker.privsep.storage import callers

MARK = "trusted.novadocker.sparse"
"""Extended attribute of a file with holes."""

_LAYER = re.compile(engine_paths.IMAGE_LAYER_PATH)
_BLOCK_BYTES = 512
# Smaller holes save too little.
_SMALLEST_BYTES = 64 << 10
_CHUNK = bytes(1 << 20)
_PAGE = bytes(4096)
# The file system has no holes, or no space for the metadata of one.
_REFUSED = (errno.EOPNOTSUPP, errno.ENOSPC)
# fallocate(2) clears these bits of a file, and its capabilities.
_PRIVILEGED_MODES = stat.S_ISUID | stat.S_ISGID
_CAPABILITY = "security.capability"


def worth_a_mark(status: os.stat_result, attributes: frozenset[str]) -> bool:
    """Return True if a file has holes that ``dig`` can restore.

    :param attributes: names of its extended attributes
    """
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_blocks * _BLOCK_BYTES + _SMALLEST_BYTES <= status.st_size
        and not status.st_mode & _PRIVILEGED_MODES
        and _CAPABILITY not in attributes
    )


def data_ranges(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each range of a file that has data; the rest is holes.

    :param size: of the file in bytes; if the file has become shorter, the rest counts as a hole
    :raises OSError: the file cannot be read
    """
    end = 0
    while end < size:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
            end = min(os.lseek(descriptor, begin, os.SEEK_HOLE), size)
        except OSError as error:
            # There is no data up to the end of the file.
            if error.errno == errno.ENXIO:
                return
            raise
        if begin < end:
            yield begin, end


@privsep.transfer_pctxt.entrypoint
def dig(folders: Sequence[str]) -> None:
    """Replace the zeros of marked files in layers by holes, and remove the marks.

    Content and times of a file do not change. If its file system has no holes, the mark stays.

    :param folders: directories of layers
    :raises ValueError: an argument is malformed
    :raises PermissionError: users other than root can change the path of a directory
    :raises OSError: a directory cannot be read
    """
    layers = [_layer(folder) for folder in arguments.items(folders)]
    for layer in layers:
        with callers.opened(layer) as top:
            _dig(top)


def _dig(top: int) -> None:
    for found in walk.Walk(top):
        with found.held() as file:
            if stat.S_ISREG(file.status.st_mode) and MARK in file.attributes():
                _dig_file(file)


def _dig_file(file: openat.Held) -> None:
    # Because an image can bear any number of marks, a file must not cost a process.
    with file.opened(os.O_RDWR) as descriptor:
        try:
            punch_zeros(descriptor)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            return
        os.removexattr(descriptor, MARK)
        os.utime(descriptor, ns=(file.status.st_atime_ns, file.status.st_mtime_ns))


def punch_zeros(descriptor: int) -> None:
    """Replace the pages of zeros in a file by holes.

    :raises OSError: the file system refuses holes, or the file can't be read
    """
    begin = position = 0
    while chunk := os.pread(descriptor, len(_CHUNK), position):
        # Comparing a chunk as a whole is fast where a file is full of zeros.
        size = len(_CHUNK) if chunk == _CHUNK else len(_PAGE)
        for offset in range(0, len(chunk), size):
            page = chunk[offset : offset + size]
            if page != _CHUNK[: len(page)]:
                _punch(descriptor, begin, position + offset)
                begin = position + offset + len(page)
        position += len(chunk)
    _punch(descriptor, begin, position)


def _punch(descriptor: int, begin: int, end: int) -> None:
    if begin < end:
        libc.punch_hole(descriptor, begin, end - begin)


def _layer(path: object) -> str:
    return arguments.without_detours(arguments.text(_LAYER, path))
