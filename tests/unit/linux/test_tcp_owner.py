# SPDX-License-Identifier: Apache-2.0
"""The user at the other end of a connection, as the kernel returns it."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from novadocker.linux import tcp_owner

NOBODY = 65534
CONNECT = """
import os, socket, sys
os.setuid(int(sys.argv[1]))
connection = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    try:
        with socket.create_server((request.param, 0), family=family) as found:
            yield found
    except OSError:
        pytest.skip(f"this host lacks {request.param}")


def test_the_own_user(listener: socket.socket) -> None:
    with socket.create_connection(listener.getsockname()[:2]), listener.accept()[0] as accepted:
        assert tcp_owner.uid_of_peer(accepted) == os.getuid()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_another_user() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        command = [sys.executable, "-c", CONNECT, str(NOBODY), port]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            assert client.stdin is not None
            listener.settimeout(60)
            with listener.accept()[0] as accepted:
                assert tcp_owner.uid_of_peer(accepted) == NOBODY
            client.stdin.close()


def test_a_socket_that_was_closed_has_no_user(listener: socket.socket) -> None:
    client = socket.create_connection(listener.getsockname()[:2])
    with listener.accept()[0] as accepted:
        client.sendall(b"a command\n")
        client.close()
        assert tcp_owner.uid_of_peer(accepted) is None


def test_a_socket_that_listens_is_not_the_other_end(listener: socket.socket) -> None:
    client = socket.socket(listener.family)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind((listener.getsockname()[0], 0))
    client.connect(listener.getsockname()[:2])
    own = client.getsockname()
    with listener.accept()[0] as accepted:
        # A reset leaves no socket behind.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        accepted_peer = accepted.getpeername()
        client.close()

        class Accepted:
            family = accepted.family

            def getsockname(self) -> object:
                return accepted.getsockname()

            def getpeername(self) -> object:
                return accepted_peer

        with socket.create_server(own[:2], family=listener.family):
            assert tcp_owner.uid_of_peer(Accepted()) is None  # type: ignore[arg-type]
