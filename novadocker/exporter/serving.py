# SPDX-License-Identifier: Apache-2.0
"""The HTTP or HTTPS server of the metrics.

The server of ``prometheus_client`` has no passwords, and it compresses each scrape, which takes
longer than the scrape itself.
"""

import base64
import hmac
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import ThreadingWSGIServer

from novadocker.exporter.rendering import CONTENT_TYPE, render

LOG = logging.getLogger(__name__)

PATH = "/metrics"

# A client that sends nothing is disconnected after this time; more clients at a time are refused.
_CLIENT_SECONDS = 10
_MOST_CLIENTS = 16
_READABLE_BY_OTHERS = 0o007
_STOPS = {signal.SIGTERM, signal.SIGINT}

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
        return inner(environment, start)

    return application


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_SECONDS

    def log_message(self, format: str, *arguments: object) -> None:
        """Do nothing: requests are not logged."""


class _Server(ThreadingWSGIServer):
    """A server with one thread for each client, up to a limit."""

    def __init__(self, *arguments: Any) -> None:
        self._places = threading.BoundedSemaphore(_MOST_CLIENTS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a client's thread, or close the connection if there are too many clients."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a client and release its place."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, *request_and_address: Any) -> None:
        """Log the error of a client's thread."""
        LOG.warning("Failed to answer client %s: %s", request_and_address[1][0], sys.exception())


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
