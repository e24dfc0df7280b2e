# SPDX-License-Identifier: Apache-2.0
"""The server of the metrics: clients that are slow, many or malformed."""

import base64
import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novadocker.exporter import serving
from novadocker.exporter.serving import Application, Environment, Start
from tests import fuzz, https

GET = b"GET /metrics HTTP/1.1\r\nHost: host\r\n"
PASSWORD = b"user:secret"
AUTHORIZATION = b"Authorization: Basic " + base64.b64encode(PASSWORD) + b"\r\n"


def short(environment: Environment, start: Start) -> Iterable[bytes]:
    start("200 OK", [])
    return [b"answer"]


@contextlib.contextmanager
def served(
    application: Application = short, tls: serving.Tls | None = None
) -> Iterator[Callable[..., socket.socket]]:
    """Serve an application and yield a function that connects and sends bytes."""
    server, thread = serving.start(ipaddress.ip_address("127.0.0.1"), 0, application, tls)
    with contextlib.ExitStack() as opened:

        def connect(content: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
            address = ("127.0.0.1", server.server_port)
            client = socket.create_connection(address, 30, source_address=(source, 0))
            opened.enter_context(client)
            client.sendall(content)
            return client

        yield connect
    server.shutdown()
    server.server_close()
    thread.join()


def answer(client: socket.socket) -> bytes:
    """Return all that the server sends until it closes the connection."""
    with contextlib.suppress(ConnectionError), client.makefile("rb") as source:
        return source.read()
    return b""


def is_open(client: socket.socket, seconds: float = 0.05) -> bool:
    """Return True if the server does not close a connection within this time."""
    client.settimeout(seconds)
    try:
        return client.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


@pytest.mark.parametrize("piece", [b"", b"X: y\r\n", b"x"])
def test_the_head_of_a_request_has_a_deadline(
    piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_CLIENT_SECONDS", 0.3)
    with served() as connect:
        client = connect(GET)
        deadline = time.monotonic() + 30
        while is_open(client, 0.1):
            assert time.monotonic() < deadline
            with contextlib.suppress(ConnectionError):
                client.sendall(piece)


def test_the_handshake_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_CLIENT_SECONDS", 0.3)
    certificate, key = https.make_certificate(tmp_path)
    # The type and the version of a record, and its length, which the client does not send.
    with served(tls=serving.Tls(certificate, key)) as connect:
        client = connect(b"\x16\x03\x01\x02\x00\x01")
        deadline = time.monotonic() + 30
        while is_open(client, 0.1):
            assert time.monotonic() < deadline
            with contextlib.suppress(ConnectionError):
                client.sendall(b"\x00")


@pytest.mark.parametrize("number", [16, 40])
def test_slow_clients_do_not_shut_others_out(number: int) -> None:
    with served(serving.with_password(short, PASSWORD)) as connect:
        slow = [connect(GET) for _ in range(number)]
        for _ in range(3):
            assert answer(connect(GET + b"\r\n")).startswith(b"HTTP/1.0 401 ")
            assert answer(connect(GET + AUTHORIZATION + b"\r\n")).endswith(b"answer")
        # The oldest ones were disconnected, and no more than necessary.
        assert [is_open(client) for client in slow[-17:]] == [False] * (len(slow[-17:]) - 15) + [
            True
        ] * 15


def test_clients_with_the_password_keep_their_places() -> None:
    ends = threading.Event()
    begun = threading.Semaphore(0)

    def long(environment: Environment, start: Start) -> Iterable[bytes]:
        begun.release()
        assert ends.wait(60)
        return short(environment, start)

    with served(serving.with_password(long, PASSWORD)) as connect:
        trusted = [connect(GET + AUTHORIZATION + b"\r\n") for _ in range(16)]
        for _ in trusted:
            assert begun.acquire(timeout=60)
        assert answer(connect(GET + AUTHORIZATION + b"\r\n")) == b""
        ends.set()
        assert {answer(client)[-6:] for client in trusted} == {b"answer"}


def test_a_request_that_was_read_is_disconnected_last() -> None:
    ends = threading.Event()
    begun = threading.Event()

    def long(environment: Environment, start: Start) -> Iterable[bytes]:
        begun.set()
        assert ends.wait(60)
        return short(environment, start)

    with served(long) as connect:
        reading = connect(GET + b"\r\n")
        assert begun.wait(60)
        slow = [connect(GET) for _ in range(40)]
        assert answer(slow[0]) == b""
        ends.set()
        assert answer(reading).endswith(b"answer")


def test_many_clients_of_one_address_disconnect_one_another() -> None:
    with served() as connect:
        other = connect(GET, source="127.0.0.2")
        for _ in range(40):
            connect(GET)
        assert is_open(other)
        other.sendall(b"\r\n")
        assert answer(other).endswith(b"answer")


def test_errors_of_clients_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    with served() as connect:
        for _ in range(20):
            connect(GET).close()
            assert answer(connect(GET + b"\r\n")).endswith(b"answer")
    assert caplog.text.count("Failed to answer client 127.0.0.1") == 1


def test_a_client_that_does_not_read_causes_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving._Handler, "timeout", 0.2)

    def large(environment: Environment, start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        return [bytes(64 << 20)]

    with served(large) as connect:
        client = connect(GET + b"\r\n")
        time.sleep(0.5)
        assert len(answer(client)) < 64 << 20
    assert capfd.readouterr().err == ""


def test_a_fault_of_the_exporter_causes_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    def faulty(environment: Environment, start: Start) -> Iterable[bytes]:
        raise KeyError("fault")

    with served(faulty) as connect:
        assert b"500 Internal Server Error" in answer(connect(GET + b"\r\n"))
    assert "KeyError: 'fault'" in capfd.readouterr().err


class Directly(serving._Handler):
    """A handler without a socket."""

    def __init__(self, content: bytes) -> None:
        self.own, other = socket.socketpair()
        with self.own, other:
            other.sendall(content)
            other.shutdown(socket.SHUT_WR)
            server = type("Server", (serving._Server,), {"__init__": lambda _: None})()
            server._lock, server._clients = threading.Lock(), {}
            server.base_environ = {}
            server.set_app(serving.with_password(short, PASSWORD))
            self.answer = b""
            with contextlib.suppress(ConnectionError):
                super().__init__(self.own, ("127.0.0.1", 1), server)
            self.own.shutdown(socket.SHUT_WR)
            self.answer = answer(other)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((b"X: " + b"x" * 1000 + b"\r\n") * 30, b"200"),
        ((b"X: " + b"x" * 1000 + b"\r\n") * 50, b"431"),
        (b"X: " + b"x" * 40_000 + b"\r\n", b"431"),
    ],
)
def test_the_head_of_a_request_has_a_largest_size(lines: bytes, status: bytes) -> None:
    content = GET + AUTHORIZATION + lines + b"\r\n"
    assert Directly(content).answer.startswith(b"HTTP/1.0 " + status)


HEADERS = st.lists(
    st.tuples(st.sampled_from([b"Content-Type", b"Content-Length", b"Authorization", b"Expect"]))
    | st.tuples(st.binary(max_size=20), st.binary(max_size=40)),
    max_size=8,
).map(lambda pairs: b"".join(b": ".join(pair) + b"\r\n" for pair in pairs))
HEADS = st.binary(max_size=400) | st.builds(
    lambda line, headers, end: line + headers + end,
    st.sampled_from([GET, b"GET /\r\n", b"POST /metrics HTTP/1.1\r\n"]) | st.binary(max_size=60),
    HEADERS,
    st.sampled_from([b"\r\n", b"\n", b""]),
)


@given(HEADS)
@fuzz.examples(200)
def test_no_head_gets_past_the_password(content: bytes) -> None:
    with fuzz.bounds():
        found = Directly(content).answer
    assert b"answer" not in found
    assert found == b"" or found.startswith((b"HTTP/1.0 4", b"HTTP/1.0 5", b"<!DOCTYPE"))
    assert b"HTTP/1.0 500" not in found
