# SPDX-License-Identifier: Apache-2.0
"""The Unix socket by which novadocker-exporter reports incidents of instances to nova-compute.

Each incident is one datagram. nova-compute owns the socket, and only root can write to it. Imports
neither Nova nor Prometheus, because each end has only one of them installed.
"""

import os
import re
import socket
from pathlib import Path

from novadocker import naming

OOM_KILL = "oom_kill"
PIDS_LIMIT = "pids_limit"
TABLE_FULL = "conntrack_full"

TOLD = (PIDS_LIMIT, TABLE_FULL)
"""The kinds that are sent. The engine itself reports out-of-memory kills to nova-compute."""

LARGEST = 256

_FILE = "novadocker-incidents"
_DATAGRAM = re.compile(rf"({'|'.join(TOLD)}) ({naming.UUID.pattern})".encode())


def listen(state_path: Path) -> socket.socket:
    """Create the socket that receives the datagrams. Replaces a socket of an earlier process.

    :param state_path: of nova-compute
    :raises OSError: the socket can't be created below ``state_path``
    """
    path = _path(state_path)
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        # bind gives the file the permissions of the descriptor (unix(7)), so nobody can connect
        # before they are set.
        os.fchmod(found.fileno(), 0o600)
        path.unlink(missing_ok=True)
        found.bind(str(path))
    except OSError:
        found.close()
        raise
    return found


def tell(state_path: Path, kind: str, instance_uuid: str) -> None:
    """Send an incident to nova-compute. Does not block.

    :param kind: one of TOLD
    :raises OSError: nova-compute does not listen, or the socket's receive queue is full
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(f"{kind} {instance_uuid}".encode(), str(_path(state_path)))


def parse(datagram: bytes) -> tuple[str, str] | None:
    """Return the kind and the instance's UUID; None if the datagram is malformed. Pure."""
    match = _DATAGRAM.fullmatch(datagram)
    return (match[1].decode(), match[2].decode()) if match else None


def _path(state_path: Path) -> Path:
    return state_path / _FILE
