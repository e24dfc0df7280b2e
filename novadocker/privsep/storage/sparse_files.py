# SPDX-License-Identifier: Apache-2.0
"""Privileged: holes of sparse files, which layers of images have no word for.

A snapshot marks the files that have holes with an attribute. They arrive full of zeros, and are
sparse again once the engine has unpacked the snapshot.
"""

import errno
import os
import re
import stat
from collections.abc import Sequence

from novadocker import privsep
from novadocker.linux import libc
from novadocker.privsep import arguments

MARK = "trusted.novadocker.sparse"
"""The attribute of a file that has holes."""

_LAYER = re.compile(r"/(?:[\w.-]+/)+overlay2/[0-9a-z]{25,64}/diff")
_BLOCK_BYTES = 512
# smaller holes are not worth the work
_SMALLEST_BYTES = 64 << 10
_CHUNK = bytes(1 << 20)
_PAGE = bytes(4096)
# The file system has no holes, or no space for the metadata of one.
_REFUSED = (errno.EOPNOTSUPP, errno.ENOSPC)
# to dig takes these from a file
_PRIVILEGED_MODES = stat.S_ISUID | stat.S_ISGID
_CAPABILITY = "security.capability"


def worth_a_mark(status: os.stat_result, attributes: frozenset[str]) -> bool:
    """Tell whether a file has holes that can be dug again.

    :param attributes: the names of its attributes
    """
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_blocks * _BLOCK_BYTES + _SMALLEST_BYTES <= status.st_size
        and not status.st_mode & _PRIVILEGED_MODES
        and _CAPABILITY not in attributes
    )


@privsep.transfer_pctxt.entrypoint
def dig(folders: Sequence[str]) -> None:
    """Make holes of the zeros of marked files in folders of layers, and take the marks away.

    A file keeps its content and its time. It keeps its mark, too, if its file system has no holes.

    :raises ValueError: an argument is not well-formed
    :raises OSError: a folder can't be read
    """
    layers = [_layer(folder) for folder in arguments.items(folders)]
    for layer in layers:
        for place, _, names in os.walk(layer):
            for name in names:
                _dig(f"{place}/{name}")


def _dig(path: str) -> None:
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode) or MARK not in os.listxattr(path):
        return
    # Because an image can bear any number of marks, a file must not cost a process.
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        punch_zeros(descriptor)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
    else:
        os.removexattr(descriptor, MARK)
        os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(descriptor)


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
