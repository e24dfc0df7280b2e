# SPDX-License-Identifier: Apache-2.0
"""Locks of bytes of a file (F_OFD_SETLK, fcntl(2)), which the kernel releases with the descriptor.

So the lock of a process that dies excludes no other process.
"""

import fcntl
import os
import struct
from pathlib import Path

# struct flock with l_type, l_whence, l_start, l_len and l_pid
_FLOCK = struct.Struct("hhqqi0q")


def open_file(path: Path) -> int:
    """Return a file descriptor of a file to lock; create the file and its directory if needed."""
    path.parent.mkdir(exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def take(descriptor: int, start: int, count: int) -> bool:
    """Lock bytes of a file; return False if another opening of the file has a lock of them."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _lock(start, count))
    except BlockingIOError:
        return False
    return True


def is_taken(descriptor: int, start: int, count: int) -> bool:
    """Return True if another opening of the file has a lock of the bytes."""
    found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _lock(start, count))
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


def _lock(start: int, count: int) -> bytes:
    return _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, count, 0)
