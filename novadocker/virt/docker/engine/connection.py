# SPDX-License-Identifier: Apache-2.0
"""Sessions with the Docker Engine, and its failures as the errors of ``novadocker.exception``."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import docker
import requests
import urllib3
from docker import auth, errors
from docker.transport import UnixHTTPAdapter

from novadocker import exception
from novadocker.virt.docker.engine import responses

# 1.41 is Engine 20.10's, the oldest that is supported.
MINIMUM_API_VERSION = (1, 41)

# what dockerd, containerd's shim and runc put before the cause of a failed start
_WRAPPING = re.compile(
    r"^((failed to create (shim )?task|OCI runtime \w+ failed|\w+ \w+ failed"
    r"|unable to start container process): )+"
)

_ANSWER = re.compile(r"(error parsing HTTP \d+ response body).*", re.DOTALL)


class _OnePool(UnixHTTPAdapter):
    """Connections of which each serves requests for any path.

    The SDK's own adapter keeps one for each of the last 25 paths it asked for, in every thread.
    """

    def get_connection(self, url: str, proxies: Any = None) -> Any:  # noqa: ARG002
        """Return the pool, whatever the path."""
        return super().get_connection("http+docker://localhost", proxies)


@dataclass(frozen=True)
class Tls:
    """Files for a connection to an engine at https://, each empty for none.

    :ivar ca: who may have signed the engine's certificate; the system's authorities unless given
    :ivar certificate: nova-compute's own, with ``key``
    """

    ca: str = ""
    certificate: str = ""
    key: str = ""


class Connection:
    """The engine at ``url``; safe to share between threads.

    Every request ends within ``timeout`` seconds without an answer.
    """

    def __init__(self, url: str, timeout: int, load_timeout: int, tls: Tls | None = None) -> None:
        self._url = url
        self._timeout = timeout
        self._load_timeout = load_timeout
        self._tls = tls or Tls()
        self._local = threading.local()

    @property
    def _client(self) -> docker.APIClient:
        # requests promises no thread safety, so each thread has a session of its own
        if not hasattr(self._local, "client"):
            self._local.client = self._connect(self._timeout)
        return self._local.client

    def _path(self, path: str) -> str:
        """Return the address of a resource, for requests that the SDK has no call for."""
        return f"{self._client.base_url}/v{self._client.api_version}{path}"

    def _connect(self, timeout: int) -> docker.APIClient:
        with contextlib.closing(self._open(_version(MINIMUM_API_VERSION), timeout)) as first:
            version = first.version(api_version=False)["ApiVersion"]
        if tuple(map(int, version.split("."))) < MINIMUM_API_VERSION:
            raise exception.InvalidConfiguration(
                reason=f"the engine at {self._url} speaks API {version}; "
                f"Docker Engine 20.10 or newer is needed"
            )
        return self._open(version, timeout)

    def _open(self, version: str, timeout: int) -> docker.APIClient:
        # the SDK would ask for the version before it could be told to ignore the environment
        client = docker.APIClient(
            self._url, version=version, timeout=timeout, tls=self._tls_config()
        )
        # a proxy and the authorities of the environment have no business between nova-compute and
        # its engine
        client.trust_env = False
        if self._url.startswith("unix:"):
            client.get_adapter(client.base_url).close()
            client.mount(client.base_url, _OnePool(self._url.removeprefix("unix:"), timeout))
        return client

    def _tls_config(self) -> docker.tls.TLSConfig | None:
        if not self._url.startswith("https:"):
            return None
        own = (self._tls.certificate, self._tls.key) if self._tls.certificate else None
        try:
            # there is no option to trust whoever answers
            return docker.tls.TLSConfig(client_cert=own, ca_cert=self._tls.ca, verify=True)
        except errors.TLSParameterError as error:
            raise exception.InvalidConfiguration(reason=str(error)) from error

    @contextlib.contextmanager
    def _of_registry(self, operation: str) -> Iterator[None]:
        """Translate as ever, but a registry that hangs is no engine that is away."""
        try:
            with self._translated(operation):
                yield
        except exception.EngineUnavailable as error:
            if not is_read_timeout(error.__cause__):
                raise
            raise exception.EngineError(
                operation=operation, reason="the registry does not answer"
            ) from error

    @contextlib.contextmanager
    def _translated(self, operation: str) -> Iterator[None]:
        try:
            yield
        except errors.ImageNotFound as error:
            raise exception.EngineImageNotFound(
                operation=operation, reason=error.explanation
            ) from error
        except errors.NotFound as error:
            missing_image = "no such image" in str(error.explanation).lower()
            kind = exception.EngineImageNotFound if missing_image else exception.ContainerNotFound
            raise kind(operation=operation, reason=error.explanation) from error
        except errors.APIError as error:
            raise exception.EngineError(
                operation=operation, reason=concise(error.explanation or str(error))
            ) from error
        except responses.MalformedAnswer as error:
            raise exception.EngineError(operation=operation, reason=str(error)) from error
        except (requests.RequestException, errors.DockerException) as error:
            raise exception.EngineUnavailable(url=self._url, reason=str(error)) from error

    def _told(self, response: Any, operation: str) -> Iterator[dict[str, Any]]:
        """Yield what the engine says while it works on an image.

        :raises EngineError: it can't, or a registry refuses
        """
        self._client._raise_for_status(response)
        for line in filter(None, response.iter_lines(chunk_size=None)):
            message = json.loads(line)
            if "error" in message:
                raise exception.EngineError(operation=operation, reason=concise(message["error"]))
            yield message


def read_credentials(registry: str, path: str) -> dict[str, Any]:
    """Return a registry's credentials in a file as of ``docker login``; its path may be empty."""
    # never those of the home folder, which the SDK would take by itself
    return (auth.load_config(path).resolve_authconfig(registry) if path else None) or {}


def _version(numbers: Iterable[int]) -> str:
    return ".".join(map(str, numbers))


def concise(text: str) -> str:
    """Return an error of the engine without what its layers prepend to the cause.

    Nor with what a registry answered: it can lead the engine to any service that the host reaches.
    """
    return _ANSWER.sub(r"\1", _WRAPPING.sub("", text)).removesuffix(": unknown")


def is_read_timeout(error: BaseException | None) -> bool:
    """Tell whether the engine took a request and did not answer in time."""
    # a time-out while the body is read arrives as a ConnectionError around urllib3's
    return isinstance(error, requests.ReadTimeout) or (
        isinstance(error, requests.ConnectionError)
        and bool(error.args)
        and isinstance(error.args[0], urllib3.exceptions.ReadTimeoutError)
    )
