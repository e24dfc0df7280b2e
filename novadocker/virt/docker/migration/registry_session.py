# SPDX-License-Identifier: Apache-2.0
"""HTTPS requests to a registry whose answers can neither block nor redirect nova-compute.

The rules hold for every request of a session, whoever makes it:

* Only https, with the certificate of the host verified.
* Neither a proxy nor credentials from the environment; no cookies, because Harbor takes a client
  with a cookie for a browser and then demands CSRF tokens.
* An ``Authorization`` header reaches only hosts that the session was told of.
* Only a download follows redirects, and without credentials.
* The head of an answer arrives within the timeout in whole, and so does the body of everything but
  a download. Such a body has at most ``MAX_ANSWER_BYTES``.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from collections.abc import Mapping
from contextvars import ContextVar
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

# Because manifests of more than 4 MiB are refused by registries, too.
MAX_ANSWER_BYTES = 4 << 20

_MAX_REDIRECTS = 3
_CHUNK_BYTES = 64 << 10

# True while the request of this thread asks for a body of any length.
_streamed: ContextVar[bool] = ContextVar("streamed", default=False)


class RefusedAnswer(requests.RequestException):
    """An answer breaks a rule of this module, or a request would."""


class Session(requests.Session):
    """A session with one registry, its token server and its blob storage.

    Like any session of requests, it serves one thread at a time.

    :param certificates: the directory with a directory ``host:port`` for each host whose authority
        is the operator's own, as in ``/etc/docker/certs.d``
    :param registry: host and port
    :param timeout: seconds to connect, for each read and write, and for an answer in whole
    """

    def __init__(self, certificates: Path, registry: str, timeout: float) -> None:
        super().__init__()
        self.trust_env = False
        self.headers["Accept-Encoding"] = "identity"
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.mount("https://", _Adapter())
        self._certificates = certificates
        self._registry = registry
        self._timeout = timeout
        self._trusted = {host_name(registry)}

    def trust_with_credentials(self, host: str) -> None:
        """Allow requests to a host, with or without its port, to carry credentials."""
        self._trusted.add(host_name(host))

    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002
        """Return None, because ``send`` follows redirects itself."""
        return None

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a request by the rules of the module.

        :raises RefusedAnswer: the request or its answer breaks a rule
        """
        response = self._send(request, options)
        hops = 0
        while response.is_redirect:
            url = urljoin(response.url, response.headers["Location"])
            if not options.get("stream") or hops == _MAX_REDIRECTS:
                raise RefusedAnswer(f"it redirects a request to {_origin(url)}")
            hops += 1
            # Because this is a new request, it carries no credentials.
            response = self._send(self.prepare_request(requests.Request("GET", url)), options)
        return response

    def _send(
        self, request: requests.PreparedRequest, options: Mapping[str, Any]
    ) -> requests.Response:
        place = urlsplit(str(request.url))
        if place.scheme != "https":
            raise RefusedAnswer(f"{_origin(str(request.url))} is not at https")
        if "Authorization" in request.headers and place.hostname not in self._trusted:
            raise RefusedAnswer(f"it asks for its credentials to be sent to {place.hostname}")
        rules = {"timeout": self._timeout, "verify": self._authority(place.netloc)}
        return super().send(request, **{**options, **rules})

    def _authority(self, host: str) -> str | bool:
        """Return the file of the authority that signs a host's certificate; True for the system's.

        The token server may have another port than the registry.
        """
        hosts = [host]
        if host_name(host) == host_name(self._registry):
            hosts.append(self._registry)
        for name in hosts:
            path = self._certificates / name / "ca.crt"
            if path.exists():
                return str(path)
        return True


class _Reader(io.RawIOBase):
    """Reads a socket until a deadline.

    :ivar deadline: by the monotonic clock; None if only each read is bounded, by the timeout
    """

    def __init__(self, sock: socket.socket, source: io.RawIOBase) -> None:
        self._sock = sock
        self._source = source
        timeout = sock.gettimeout()
        assert timeout is not None
        self._timeout = timeout
        self.deadline: float | None = time.monotonic() + timeout

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.deadline is None:
            return self._source.readinto(buffer)
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        try:
            return self._source.readinto(buffer)
        finally:
            # The body of a download is read with this timeout, so it must not stay shortened.
            self._sock.settimeout(self._timeout)

    def close(self) -> None:
        self._source.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer that must be complete within the timeout; of a download, its head."""

    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self._reader = _Reader(sock, self.fp.detach())
        self.fp = io.BufferedReader(self._reader)

    def begin(self) -> None:
        super().begin()
        if _streamed.get():
            self._reader.deadline = None


class _Connection(urllib3.connection.HTTPSConnection):
    response_class = _Response


class _Pool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Connection


class _Adapter(HTTPAdapter):
    """Connections whose answers are bounded in time and, unless streamed, in size."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = {"https": _Pool}

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """Send a request, and read the answer in whole unless it is a download."""
        token = _streamed.set(stream)
        try:
            response = super().send(request, True, timeout, verify, cert, proxies)
        finally:
            _streamed.reset(token)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            response.close()
            raise RefusedAnswer("its answer is compressed")
        if not stream or response.status_code != requests.codes.ok:
            response._content = _read(response)
        return response


def host_name(host: str) -> str | None:
    """Return a host without its port."""
    return urlsplit(f"//{host}").hostname


def _origin(url: str) -> str:
    place = urlsplit(url)
    return f"{place.scheme}://{place.hostname}"


def _read(response: requests.Response) -> bytes:
    content = bytearray()
    with response:
        for chunk in response.iter_content(_CHUNK_BYTES):
            content += chunk
            if len(content) > MAX_ANSWER_BYTES:
                raise RefusedAnswer(f"its answer has more than {MAX_ANSWER_BYTES >> 20} MiB")
    return bytes(content)
