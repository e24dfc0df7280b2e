# SPDX-License-Identifier: Apache-2.0
"""Bytes between a client and a terminal, until one of them ends."""

import re
import selectors
import socket
from collections.abc import Callable

# a client that takes nothing for so long is gone
_SEND_SECONDS = 30.0
_CHUNK_BYTES = 16384

# xterm's report of its size in characters, the answer to CSI 18 t (XTWINOPS)
_REPORT = re.compile(rb"\x1b\[8;([0-9]{1,4});([0-9]{1,4})t")
# the beginning of one, at the end of what has come; a single Escape is a key
_BEGINNING = re.compile(rb"\x1b\[8(;[0-9]{0,4}){0,2}\Z")


class SizeReports:
    """Takes reports of the client's size out of what it sends."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, tuple[int, int] | None]:
        """Return what is left to pass on, and the last size reported: rows and columns."""
        data = self._held + data
        sizes = [(int(rows), int(columns)) for rows, columns in _REPORT.findall(data)]
        data = _REPORT.sub(b"", data)
        beginning = _BEGINNING.search(data)
        self._held = beginning.group() if beginning else b""
        usable = [size for size in sizes if all(size)]
        return data.removesuffix(self._held), usable[-1] if usable else None


def relay(
    client: socket.socket, terminal: socket.socket, resize: Callable[[int, int], None]
) -> None:
    """Pass bytes both ways until either side closes or takes nothing any more.

    :param resize: takes the rows and columns that the client reports
    :raises OSError: a connection broke
    """
    reports = SizeReports()
    with selectors.DefaultSelector() as selector:
        for side, other in ((client, terminal), (terminal, client)):
            side.settimeout(_SEND_SECONDS)
            selector.register(side, selectors.EVENT_READ, (side, other))
        while True:
            for key, _ in selector.select():
                side, other = key.data
                data = side.recv(_CHUNK_BYTES)
                if not data:
                    return
                if side is client:
                    data, size = reports.feed(data)
                    if size:
                        resize(*size)
                other.sendall(data)
