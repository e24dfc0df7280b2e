# SPDX-License-Identifier: Apache-2.0
"""How novadocker-exporter tells nova-compute what happened to a server, as it happens.

One datagram for each incident, in a socket of nova-compute's that nobody but root can write to.
Kept free of Nova and of Prometheus: each side has one of them.
"""

import os
import re
import socket
from pathlib import Path

OOM_KILL = "oom_kill"
PIDS_LIMIT = "pids_limit"
TABLE_FULL = "conntrack_full"

TOLD = (PIDS_LIMIT, TABLE_FULL)
"""The kinds that are told: the engine tells nova-compute of kills for want of memory itself."""

LARGEST = 256

_FILE = "novadocker-incidents"
_DATAGRAM = re.compile(
    rb"(%s) ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})" % "|".join(TOLD).encode()
)


def listen(state_path: Path) -> socket.socket:
    """Return the socket that takes the datagrams, in the place of a former one.

    :param state_path: nova-compute's
    :raises OSError: it can't be there
    """
    path = _path(state_path)
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        # the file that bind makes has these permissions (unix(7) of Linux)
        os.fchmod(found.fileno(), 0o600)
        path.unlink(missing_ok=True)
        found.bind(str(path))
    except OSError:
        found.close()
        raise
    return found


def tell(state_path: Path, kind: str, instance_uuid: str) -> None:
    """Tell nova-compute of an incident; does not wait.

    :param kind: one of TOLD
    :raises OSError: nobody listens, or has more to read than the kernel holds
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(f"{kind} {instance_uuid}".encode(), str(_path(state_path)))


def parse(datagram: bytes) -> tuple[str, str] | None:
    """Pure: return the kind and the server's UUID; None if that is neither."""
    match = _DATAGRAM.fullmatch(datagram)
    return (match[1].decode(), match[2].decode()) if match else None


def _path(state_path: Path) -> Path:
    return state_path / _FILE
