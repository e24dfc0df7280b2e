# SPDX-License-Identifier: Apache-2.0
"""The sessions of ``novadocker-receive``: each server has at most one at a time on a host.

What a session may bring is bound. Otherwise a source could bring as much once more in each of many
sessions. The kernel releases the lock when the process dies, so a dead session refuses no other.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from novadocker.linux import byte_locks

LEDGER = Path("locks", "novadocker-sessions")
"""Path of the locked file, below the directory ``instances_path``. It stays empty."""

# A lock can begin at the positions that the kernel's signed number has.
_POSITIONS = (1 << 63) - 1


@contextlib.contextmanager
def only(folder: Path, instance_uuid: str) -> Iterator[None]:
    """Hold the lock of a server's session for the block.

    :param folder: ``instances_path``
    :raises ValueError: another session has the lock
    """
    ledger = byte_locks.open_file(folder / LEDGER)
    try:
        # One byte for each server in one file, so that no file stays for each.
        start = uuid.UUID(instance_uuid).int % _POSITIONS
        if not byte_locks.take(ledger, start, 1):
            raise ValueError("another session receives the server")
        yield
    finally:
        os.close(ledger)
