# SPDX-License-Identifier: Apache-2.0
import socket
from collections.abc import Iterator

import pytest


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Yield a socket that replaces the kernel for the only Netlink of the test."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr(socket, "socket", lambda *_: ours)
    yield theirs
    theirs.close()
