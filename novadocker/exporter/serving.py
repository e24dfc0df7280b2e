# SPDX-License-Identifier: Apache-2.0
"""The HTTP or HTTPS server of the metrics.

The server of ``prometheus_client`` has no passwords, and it compresses each scrape, which takes
longer than the scrape itself.
"""

import base64
import hmac
import logging
import math
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from io import BufferedIOBase
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import ThreadingWSGIServer

from novadocker.exporter.rendering import CONTENT_TYPE, render
from novadocker.linux.threads import Sparse

LOG = logging.getLogger(__name__)

PATH = "/metrics"

# A client is disconnected if it sends or accepts no data for this time. The TLS handshake and the
# head of the request together must end within the same time.
_CLIENT_SECONDS = 10
# Time for the answer to a client without a password.
_ANSWER_SECONDS = 120
_MOST_CLIENTS = 16
_LARGEST_HEAD = 32 << 10
_ERROR_SECONDS = 60.0
_READABLE_BY_OTHERS = 0o007
_STOPS = {signal.SIGTERM, signal.SIGINT}

# Key of a function in the WSGI environment, which is called when the client sent the password.
_TRUST = "novadocker.trust"

Environment = dict[str, Any]
Start = Callable[[str, list[tuple[str, str]]], object]
Application = Callable[[Environment, Start], Iterable[bytes]]


@dataclass(frozen=True)
class Tls:
    """The PEM files of the certificate with its chain, and of its private key."""

    certificate: Path
    key: Path


def read_password(path: Path) -> bytes:
    """Return the line ``user:password`` of a file.

    :raises ValueError: the file has no such line, or its permissions give access to other users
    :raises OSError: the file can't be read
    """
    with path.open("rb") as source:
        if os.fstat(source.fileno()).st_mode & _READABLE_BY_OTHERS:
            raise ValueError(f"the permissions of {path} give access to all users of this host")
        line = source.readline(1024).strip()
    user, _, password = line.partition(b":")
    if not user or not password:
        raise ValueError(f"{path} has no line user:password")
    return line


def make_application(registry: CollectorRegistry, password: bytes | None = None) -> Application:
    """Return the WSGI application that serves the metrics.

    :param password: user and password as in ``with_password``; None to serve without a password
    """

    def application(environment: Environment, start: Start) -> Iterable[bytes]:
        if environment["REQUEST_METHOD"] != "GET":
            start("405 Method Not Allowed", [("Allow", "GET")])
            return []
        if environment["PATH_INFO"] != PATH:
            start("404 Not Found", [])
            return []
        content = render(registry.collect())
        start("200 OK", [("Content-Type", CONTENT_TYPE)])
        return [content]

    return with_password(application, password) if password else application


def with_password(inner: Application, password: bytes) -> Application:
    """Return an application that requires a password (RFC 7617) for ``inner``.

    :param password: user and password, as ``user:password``
    """
    wanted = b"Basic " + base64.b64encode(password)

    def application(environment: Environment, start: Start) -> Iterable[bytes]:
        # WSGI decodes headers as Latin-1 (PEP 3333), so encoding restores the bytes.
        given = environment.get("HTTP_AUTHORIZATION", "").encode("latin-1")
        if not hmac.compare_digest(given, wanted):
            start("401 Unauthorized", [("WWW-Authenticate", 'Basic realm="novadocker"')])
            return []
        if trust := environment.get(_TRUST):
            trust()
        return inner(environment, start)

    return application


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_SECONDS
    server: "_Server"

    def setup(self) -> None:
        """Prepare the connection."""
        super().setup()
        self.wfile = cast(BufferedIOBase, _Output(self.wfile))

    def log_message(self, format: str, *arguments: object) -> None:
        """Do nothing: requests are not logged."""

    def parse_request(self) -> bool:
        """Parse the request's head, whose size is limited."""
        body = self.rfile
        try:
            self.rfile = cast(BufferedIOBase, _Head(body))
            is_parsed = super().parse_request()
        finally:
            self.rfile = body
        self.server.note_head(self.request)
        return is_parsed

    def get_environ(self) -> Environment:
        """Return the WSGI environment."""
        trust = partial(self.server.note_password, self.request)
        return super().get_environ() | {_TRUST: trust}


class _Output:
    """The output to a client that may end the connection, or stop reading, at any time.

    :param target: the output of the connection
    """

    def __init__(self, target: BufferedIOBase) -> None:
        self._target = target

    def write(self, content: bytes) -> int:
        """Write all of the content.

        :raises ConnectionAbortedError: the client does not take it; wsgiref prints no traceback of
            this exception, in contrast to that of a timeout or of TLS
        """
        try:
            return self._target.write(content)
        except OSError as error:
            raise ConnectionAbortedError(str(error)) from error

    def __getattr__(self, name: str) -> Any:
        """Return a member of the target."""
        return getattr(self._target, name)


class _Head:
    """The lines of a request's head after the first one.

    :param source: is at the beginning of the second line
    """

    def __init__(self, source: BufferedIOBase) -> None:
        self._source = source
        self._left = _LARGEST_HEAD

    def readline(self, size: int) -> bytes:
        """Return the next line.

        :raises HTTPException: the head is too large
        :raises ConnectionError: the connection ended before the head
        """
        line = self._source.readline(min(size, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise HTTPException(f"the head is larger than {_LARGEST_HEAD} bytes")
        if not line:
            raise ConnectionError("the connection ended in the head of the request")
        return line


@dataclass
class _Client:
    """A client, at most one request of which is answered.

    :ivar ends_at: monotonic time at which the client is disconnected
    :ivar has_head: the head of its request was read
    :ivar is_trusted: it sent the password
    """

    address: str
    ends_at: float
    has_head: bool = False
    is_trusted: bool = False


class _Server(ThreadingWSGIServer):
    """A server with one thread for each client, up to a limit.

    Anyone who reaches the port can use up the places, so a further client takes the place of one
    that did not send the password.
    """

    # The kernel drops connections beyond the queue, and a client repeats them after a second.
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self._lock = threading.Lock()
        self._clients: dict[socket.socket, _Client] = {}
        self._errors = Sparse(_ERROR_SECONDS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a client's thread; close the connection if all other clients are trusted."""
        client = _Client(client_address[0], time.monotonic() + _CLIENT_SECONDS)
        with self._lock:
            is_admitted = len(self._clients) < _MOST_CLIENTS or self._disconnect_one()
            if is_admitted:
                self._clients[request] = client
        if is_admitted:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Release a client's place and close the connection."""
        # Because the number of a closed descriptor is given again, the place is released first.
        with self._lock:
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Disconnect the clients whose time is over. The server's thread calls this repeatedly."""
        super().service_actions()
        now = time.monotonic()
        with self._lock:
            for request in [key for key, client in self._clients.items() if client.ends_at <= now]:
                self._disconnect(request)

    def note_head(self, request: socket.socket) -> None:
        """Record that the head of a client's request was read."""
        with self._lock:
            if client := self._clients.get(request):
                client.has_head = True
                client.ends_at = time.monotonic() + _ANSWER_SECONDS

    def note_password(self, request: socket.socket) -> None:
        """Record that a client sent the password."""
        with self._lock:
            if client := self._clients.get(request):
                client.is_trusted = True
                client.ends_at = math.inf

    def handle_error(self, *request_and_address: Any) -> None:
        """Log the error of a client's thread, at most one a minute."""
        if (others := self._errors.count()) is not None:
            LOG.warning(
                "Failed to answer client %s: %s (further errors since the last line: %d)",
                request_and_address[1][0],
                sys.exception(),
                others,
            )

    def _disconnect_one(self) -> bool:
        """Disconnect a client that is not trusted. Return False if all are trusted.

        Clients whose request is not read yet come first, then those of the address with most
        clients, then the oldest one.
        """
        untrusted = [key for key, client in self._clients.items() if not client.is_trusted]
        if not untrusted:
            return False
        clients = self._clients
        each = Counter(clients[key].address for key in untrusted)
        self._disconnect(
            min(untrusted, key=lambda key: (clients[key].has_head, -each[clients[key].address]))
        )
        return True

    def _disconnect(self, request: socket.socket) -> None:
        """Release a client's place and end its connection, which its thread closes."""
        del self._clients[request]
        with suppress(OSError):
            # SSLSocket.shutdown changes the object, which the client's thread uses.
            socket.socket.shutdown(request, socket.SHUT_RDWR)


def hold_stops() -> None:
    """Block SIGTERM and SIGINT, for which ``run`` waits.

    Call it before any thread is started, because threads inherit the mask.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)


def run(
    address: IPv4Address | IPv6Address, port: int, application: Application, tls: Tls | None = None
) -> int:
    """Serve until SIGTERM or SIGINT, which ``hold_stops`` blocked before.

    :returns: the exit status: 0, or 1 if the server can't start, which is logged
    """
    try:
        server, thread = start(address, port, application, tls)
    except OSError as error:
        LOG.error("Failed to listen on address %s, port %d: %s", address, port, error)
        return 1
    signal.sigwait(_STOPS)
    server.shutdown()
    server.server_close()
    thread.join()
    return 0


def start(
    address: IPv4Address | IPv6Address, port: int, application: Application, tls: Tls | None = None
) -> tuple[WSGIServer, threading.Thread]:
    """Start the server and return it with its thread.

    :raises OSError: the address is in use or not on this host, or a TLS file can't be used
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    server_class = type("Server", (_Server,), {"address_family": family})
    server: WSGIServer = server_class((str(address), port), _Handler)
    server.set_app(application)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key)
        # The client's own thread does the handshake, so that a slow client does not delay others.
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, name="serve", daemon=True)
    thread.start()
    return server, thread
