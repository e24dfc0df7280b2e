# SPDX-License-Identifier: Apache-2.0
"""The sessions of ``novadocker-receive``: each server has at most one at a time on a host.

What a session may bring is bound. Otherwise a source could bring as much once more in each of many
sessions. The kernel releases the lock when the process dies, so a dead session refuses no other.
"""

import contextlib
import fcntl
import os
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

LEDGER = Path("locks", "novadocker-sessions")
"""Path of the locked file, below the directory ``instances_path``. It stays empty."""

# fcntl(2): struct flock with l_type, l_whence, l_start, l_len and l_pid
_FLOCK = struct.Struct("hhqqi0q")
# A lock can begin at the positions that the kernel's signed number has.
_POSITIONS = (1 << 63) - 1


@contextlib.contextmanager
def only(folder: Path, instance_uuid: str) -> Iterator[None]:
    """Hold the lock of a server's session for the block.

    :param folder: ``instances_path``
    :raises ValueError: another session has the lock
    """
    path = folder / LEDGER
    path.parent.mkdir(exist_ok=True)
    ledger = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        # One byte for each server in one file, so that no file stays for each.
        start = uuid.UUID(instance_uuid).int % _POSITIONS
        try:
            fcntl.fcntl(
                ledger, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0)
            )
        except BlockingIOError as error:
            raise ValueError("another session receives the server") from error
        yield
    finally:
        os.close(ledger)
