# SPDX-License-Identifier: Apache-2.0
"""The page with the metrics, over HTTP or HTTPS.

``prometheus_client`` serves pages, too, but without passwords, and compresses each scrape, which
takes longer than to make it.
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

# how long a client may keep the exporter waiting, and how many may at a time
_CLIENT_SECONDS = 10
_MOST_CLIENTS = 16
_READABLE_BY_OTHERS = 0o007
_STOPS = {signal.SIGTERM, signal.SIGINT}

Environment = dict[str, Any]
Start = Callable[[str, list[tuple[str, str]]], object]
Application = Callable[[Environment, Start], Iterable[bytes]]


@dataclass(frozen=True)
class Tls:
    """The files, in PEM, of the certificate with its chain, and of its private key."""

    certificate: Path
    key: Path


def read_password(path: Path) -> bytes:
    """Return the line ``user:password`` of a file.

    :raises ValueError: the file has no such line, or all users of the host can read it
    :raises OSError: it can't be read
    """
    with path.open("rb") as source:
        if os.fstat(source.fileno()).st_mode & _READABLE_BY_OTHERS:
            raise ValueError(f"{path} is open to all users of this host")
        line = source.readline(1024).strip()
    user, _, password = line.partition(b":")
    if not user or not password:
        raise ValueError(f"{path} has no line user:password")
    return line


def make_application(registry: CollectorRegistry, password: bytes | None = None) -> Application:
    """Return the WSGI application that shows the metrics.

    :param password: as in ``with_password``; None to ask for none
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
    """Return an application that asks for a password first.

    :param password: the user and password to ask for (RFC 7617), as ``user:password``
    """
    wanted = b"Basic " + base64.b64encode(password)

    def application(environment: Environment, start: Start) -> Iterable[bytes]:
        # WSGI gives bytes as Latin-1 (PEP 3333)
        given = environment.get("HTTP_AUTHORIZATION", "").encode("latin-1")
        if not hmac.compare_digest(given, wanted):
            start("401 Unauthorized", [("WWW-Authenticate", 'Basic realm="novadocker"')])
            return []
        return inner(environment, start)

    return application


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_SECONDS

    def log_message(self, format: str, *arguments: object) -> None:
        """Log no request."""


class _Server(ThreadingWSGIServer):
    """A thread for each client, but not for any number of them."""

    def __init__(self, *arguments: Any) -> None:
        self._places = threading.BoundedSemaphore(_MOST_CLIENTS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a client, or hang up when there are too many."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a client."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, *request_and_address: Any) -> None:
        """Log why a client got no answer."""
        LOG.warning("%s got no answer: %s", request_and_address[1][0], sys.exception())


def hold_stops() -> None:
    """Have SIGTERM and SIGINT wait for ``run``; before any thread begins, which inherits it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)


def run(
    address: IPv4Address | IPv6Address, port: int, application: Application, tls: Tls | None = None
) -> int:
    """Serve until SIGTERM or SIGINT, which ``hold_stops`` holds.

    :returns: the program's exit code: 1 for what ``start`` can't serve, which is logged
    """
    try:
        server, thread = start(address, port, application, tls)
    except OSError as error:
        LOG.error("nothing is served on %s, port %d: %s", address, port, error)
        return 1
    signal.sigwait(_STOPS)
    server.shutdown()
    server.server_close()
    thread.join()
    return 0


def start(
    address: IPv4Address | IPv6Address, port: int, application: Application, tls: Tls | None = None
) -> tuple[WSGIServer, threading.Thread]:
    """Begin to serve; return the server and its thread.

    :raises OSError: the address is taken or not this host's, or TLS's files can't be used
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    server_class = type("Server", (_Server,), {"address_family": family})
    server: WSGIServer = server_class((str(address), port), _Handler)
    server.set_app(application)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key)
        # the client's own thread shakes hands: one that is slow keeps nobody waiting
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, name="serve", daemon=True)
    thread.start()
    return server, thread
