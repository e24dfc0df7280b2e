# SPDX-License-Identifier: Apache-2.0
"""The space on the disk that a tree may take while another host's stream fills it."""

import stat

from novadocker.linux import walk
from novadocker.linux.pipes import StreamError

# An entry without content takes a part of a block, too, as a rule.
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

    def take_entry(self, folder: int, more: int) -> None:
        """Count an entry that is about to be made. Raises as ``take``.

        :param more: bytes of its attributes and of a link's target
        """
        self.take(folder, _ENTRY_BYTES + more)

    def take(self, folder: int, size: int) -> None:
        """Count bytes that are about to be written.

        :param folder: descriptor of the tree
        :raises StreamError: the tree would have more than it may have
        """
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
