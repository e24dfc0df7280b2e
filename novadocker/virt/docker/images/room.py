# SPDX-License-Identifier: Apache-2.0
"""Space for the temporary files of images, of which all processes of this host have one budget.

The budget of a directory is half of the space that would be free without these files, because the
engine needs the other half. A file counts before it is written, so a few archives that arrive at
once can't fill the disk of all servers.

The shares of nova-compute, of each ``novadocker-receive`` and of their threads are in one file in
the directory ``locks``. A share has a slot with two numbers, and holds a lock of the slot, which
the kernel releases when the process dies. Slots without a lock do not count.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from novadocker.linux import byte_locks

LEDGER = Path("locks", "novadocker-room")
"""Path of the file with the shares, below the directory of the files."""

# A boot, a snapshot or a move has at most two shares at a time.
_MOST_SHARES = 256
# What a share has reserved, and what it has used, in bytes.
_SLOT = struct.Struct("=QQ")


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
        # The kernel's lock of the file has no effect between threads that share its descriptor.
        self._threads = threading.Lock()
        self._ledger = -1
        self._slot = -1
        self._reserved = self._used = 0

    def __enter__(self) -> Share:
        """Begin to count the files.

        :raises NoRoomError: there are too many files already
        """
        self._ledger = byte_locks.open_file(self._folder / LEDGER)
        try:
            with self._locked():
                self._slot = next(filter(self._takes, range(_MOST_SHARES)), -1)
                if self._slot < 0:
                    raise NoRoomError
                self._write()
        except BaseException:
            os.close(self._ledger)
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Give the space back."""
        # The kernel releases the slot with the file.
        os.close(self._ledger)

    def reserve(self, size: int) -> None:
        """Reserve space for files that are written later.

        :raises NoRoomError: the budget is less
        """
        with self._locked():
            if size > self._left():
                raise NoRoomError
            self._reserved += size
            self._write()

    def use(self, size: int) -> None:
        """Count bytes that are about to be written, first those that were reserved.

        :raises NoRoomError: the budget is less
        """
        with self._locked():
            more = self._used + size - max(self._reserved, self._used)
            if more > 0 and more > self._left():
                raise NoRoomError
            self._used += size
            self._write()

    def left(self) -> int:
        """Return the bytes for which the budget has room now."""
        with self._locked():
            return max(self._left(), 0)

    def _left(self) -> int:
        found = shares(self._folder)
        used = sum(used for _, used in found)
        taken = sum(map(max, found))
        return (shutil.disk_usage(self._folder).free + used) // 2 - taken

    def _write(self) -> None:
        content = _SLOT.pack(self._reserved, self._used)
        os.pwrite(self._ledger, content, self._slot * _SLOT.size)

    def _takes(self, slot: int) -> bool:
        """Lock a slot for this share; return False if another share has it."""
        return byte_locks.take(self._ledger, slot * _SLOT.size, _SLOT.size)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the whole file, which each share takes only for the blocks above."""
        with self._threads:
            fcntl.flock(self._ledger, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._ledger, fcntl.LOCK_UN)


def left(folder: Path) -> int:
    """Return the bytes for which the budget of a directory has room now."""
    with Share(folder) as share:
        return share.left()


def shares(folder: Path) -> list[tuple[int, int]]:
    """Return what each share of a directory's budget has reserved and used, in bytes."""
    found = []
    # A descriptor of its own: the kernel does not tell of the locks of the asking one.
    ledger = byte_locks.open_file(folder / LEDGER)
    try:
        content = os.pread(ledger, _MOST_SHARES * _SLOT.size, 0)
        for slot, share in enumerate(_SLOT.iter_unpack(content)):
            if any(share) and byte_locks.is_taken(ledger, slot * _SLOT.size, _SLOT.size):
                found.append(share)
    finally:
        os.close(ledger)
    return found
