# SPDX-License-Identifier: Apache-2.0
"""Space for the temporary files of images, of which all threads of this process have one budget.

The budget of a file system is half of the space that would be free without these files, because
the engine needs the other half. A file counts before it is written, so a few archives that arrive
at once can't fill the disk of all servers.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections import defaultdict
from pathlib import Path
from types import TracebackType

_lock = threading.Lock()
# The shares of each file system, by the number of its device.
_shares: defaultdict[int, set[Share]] = defaultdict(set)


class NoRoomError(OSError):
    """The temporary files of images have no room for more."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, "this host has not enough free space")


class Share:
    """The part of the budget that the files of one image take, until the end of the block.

    :param folder: directory of the files
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._device = os.stat(folder).st_dev
        self._reserved = self._used = 0

    def __enter__(self) -> Share:
        """Begin to count the files."""
        with _lock:
            _shares[self._device].add(self)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Give the space back."""
        with _lock:
            _shares[self._device].discard(self)

    def reserve(self, size: int) -> None:
        """Reserve space for files that are written later.

        :raises NoRoomError: the budget is less
        """
        with _lock:
            if size > self._left():
                raise NoRoomError
            self._reserved += size

    def use(self, size: int) -> None:
        """Count bytes that are about to be written, first those that were reserved.

        :raises NoRoomError: the budget is less
        """
        with _lock:
            more = self._used + size - max(self._reserved, self._used)
            if more > 0 and more > self._left():
                raise NoRoomError
            self._used += size

    def _left(self) -> int:
        shares = _shares[self._device]
        used = sum(share._used for share in shares)
        taken = sum(max(share._reserved, share._used) for share in shares)
        return (shutil.disk_usage(self._folder).free + used) // 2 - taken


def left(folder: Path) -> int:
    """Return the bytes for which the budget of a directory's file system has room now."""
    with Share(folder) as share, _lock:
        return max(share._left(), 0)
