# SPDX-License-Identifier: Apache-2.0
"""The space on the disk that a tree may take while another host's stream fills it."""

import os
import stat

from novadocker.linux import walk
from novadocker.linux.pipes import StreamError

# An entry takes an inode and a part of a block of its directory.
_ENTRY_BYTES = 512
_BLOCK_BYTES = 512
# Two file systems store the same tree in blocks of different sizes.
_SPARE_SHARE = 32


class Allowance:
    """The space of one tree; serves one thread at a time.

    What is written counts until the sum is above the bound. Only then the tree is measured, because
    files may have replaced others. After that a share of the bound must be written before the
    next measurement, so the time is linear in what is written.

    :param most: bytes; 0 means no bound
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._spare = most // _SPARE_SHARE
        self._taken = 0

    def take_entry(self, folder: int, more: int, is_folder: bool) -> None:
        """Count an entry that is about to be made. Raises as ``take``.

        :param more: bytes of its attributes and of a link's target
        """
        # The first name in a directory takes a whole block, and so does what the inode can't hold.
        self._count(folder, _ENTRY_BYTES + _in_blocks(folder, 0, more + is_folder))

    def take(self, folder: int, begin: int, end: int) -> None:
        """Count a range of a file's content that is about to be written.

        :param folder: descriptor of the tree
        :raises StreamError: the tree would have more than it may have
        """
        self._count(folder, _in_blocks(folder, begin, end))

    def _count(self, folder: int, size: int) -> None:
        if not self._most:
            return
        self._taken += size
        if self._taken > self._most + 2 * self._spare:
            self._taken = _measure(folder) + size
            if self._taken > self._most + self._spare:
                mebibytes = self._most >> 20
                raise StreamError(
                    f"the server has more data than the {mebibytes} MiB of its flavor's root disk"
                )


def _in_blocks(folder: int, begin: int, end: int) -> int:
    """Return the bytes of the blocks that a range of content touches."""
    block = os.fstat(folder).st_blksize
    return (-(-end // block) - begin // block) * block


def _measure(folder: int) -> int:
    """Return the bytes that a tree takes on the disk."""
    size = 0
    linked: set[int] = set()
    for found in walk.Walk(folder):
        status = found.status
        if status is None:
            continue
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
            if status.st_ino in linked:
                continue
            linked.add(status.st_ino)
        size += status.st_blocks * _BLOCK_BYTES
    return size
