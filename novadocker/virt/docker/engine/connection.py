# SPDX-License-Identifier: Apache-2.0
"""HTTP sessions with the Docker Engine; its errors become those of ``novadocker.exception``."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import docker
import requests
import urllib3
from docker import auth, errors
from docker.transport import UnixHTTPAdapter
from oslo_log import log as logging

from novadocker import exception
from novadocker.virt.docker.engine import engine_errors, registry_errors, responses

LOG = logging.getLogger(__name__)

MINIMUM_API_VERSION = (1, 41)
"""The API version of Engine 20.10, the oldest supported one."""

# The engine's refusal of a session that began before the engine was upgraded or downgraded.
_OTHER_VERSION = re.compile(r"client version [0-9.]+ is too (?:new|old)\.")

# The log has at most so many characters of a message, because an image can choose its length.
_LOGGED = 1000

PATIENCE = 10.0
"""Seconds for a request about one container in a loop over many, which others wait for."""

_PING_SECONDS = 5


class _OnePool(UnixHTTPAdapter):
    """A connection pool for all paths.

    The SDK's own adapter keeps a connection for each of the last 25 paths, in every thread.
    """

    def get_connection(self, url: str, proxies: Any = None) -> Any:  # noqa: ARG002
        """Return the same pool for every path."""
        return super().get_connection("http+docker://localhost", proxies)


@dataclass(frozen=True)
class Tls:
    """Files for a connection to an engine at https://; an empty path means no file.

    :ivar ca: certificate of the authority of the engine; the system's authorities if empty
    :ivar certificate: nova-compute's own certificate
    :ivar key: key of ``certificate``
    """

    ca: str = ""
    certificate: str = ""
    key: str = ""


class Options(Protocol):
    """The options of the group ``docker`` that describe the engine; see ``novadocker.conf``."""

    api_url: str
    api_timeout: int
    image_load_timeout: int
    ca_file: str
    cert_file: str
    key_file: str


class Connection:
    """Sessions with the engine at ``url``; may be shared between threads.

    A request fails if the engine does not answer within ``timeout`` seconds.
    """

    def __init__(self, url: str, timeout: int, load_timeout: int, tls: Tls | None = None) -> None:
        self._url = url
        self._most_seconds = timeout
        self._load_timeout = load_timeout
        self._tls = tls or Tls()
        self._local = threading.local()
        # The API version of all threads' sessions; empty if the engine must be asked for it.
        self._api_version = ""

    @property
    def _timeout(self) -> float:
        return float(getattr(self._local, "seconds", self._most_seconds))

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Shorten the timeout of the calling thread's requests while the block runs.

        The timeout of requests that load, pull or save an image stays.
        """
        before = self._timeout
        try:
            self._set_timeout(min(seconds, before))
            yield
        finally:
            self._set_timeout(before)

    def _set_timeout(self, seconds: float) -> None:
        self._local.seconds = seconds
        # A thread without a session gets one by its first request, which translates errors.
        if hasattr(self._local, "client"):
            self._local.client.timeout = seconds

    @property
    def _client(self) -> docker.APIClient:
        # Because requests.Session is not thread-safe, each thread has its own session.
        client = getattr(self._local, "client", None)
        if client is None or client.api_version != self._api_version:
            if client is not None:
                client.close()
            client = self._local.client = self._connect(self._timeout)
            self._api_version = client.api_version
        return client

    def _path(self, path: str) -> str:
        """Return the URL of a resource, for requests that the SDK has no function for."""
        return f"{self._client.base_url}/v{self._client.api_version}{path}"

    def _connect(self, timeout: float) -> docker.APIClient:
        with contextlib.closing(self._open(_version(MINIMUM_API_VERSION), timeout)) as first:
            version = first.version(api_version=False)["ApiVersion"]
        if tuple(map(int, version.split("."))) < MINIMUM_API_VERSION:
            raise exception.InvalidConfiguration(
                reason=f"the engine at {self._url} has API version {version}; "
                f"Docker Engine 20.10 or newer is required"
            )
        return self._open(version, timeout)

    def _open(self, version: str, timeout: float) -> docker.APIClient:
        # Without a version, the SDK would request it before trust_env can be set below.
        client = docker.APIClient(
            self._url, version=version, timeout=timeout, tls=self._tls_config()
        )
        # Ignore the environment, because its proxy and certificates are not meant for the engine.
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
            # Verification can't be turned off, because the engine's API gives root on its host.
            return docker.tls.TLSConfig(client_cert=own, ca_cert=self._tls.ca, verify=True)
        except errors.TLSParameterError as error:
            raise exception.InvalidConfiguration(reason=str(error)) from error

    @contextlib.contextmanager
    def _translate_registry_errors(self, operation: str) -> Iterator[None]:
        """Translate errors of a request that makes the engine send requests to a registry.

        A timeout then means that the registry does not answer, not that the engine does not. The
        engine's message is logged, and the error contains a sentence of ``registry_errors``.
        """
        try:
            with self._translate_errors(operation, _registry_error):
                yield
        except exception.EngineUnavailable as error:
            if not is_read_timeout(error.__cause__):
                raise
            raise exception.EngineError(
                operation=operation, reason="the registry does not answer"
            ) from error

    @contextlib.contextmanager
    def _about_container(self, operation: str) -> Iterator[None]:
        """Translate errors of a request about one container.

        The engine locks a container during an operation on it. If the operation hangs, other
        requests about the container hang, too, and requests about other containers do not.
        """
        try:
            with self._translate_errors(operation):
                yield
        except exception.EngineUnavailable as error:
            if not is_read_timeout(error.__cause__) or not self._answers():
                raise
            raise exception.ContainerHangs(
                operation=operation, seconds=round(self._timeout)
            ) from error

    def _answers(self) -> bool:
        try:
            with self._translate_errors("to answer a ping"):
                self._client.get(f"{self._client.base_url}/_ping", timeout=_PING_SECONDS)
        except exception.EngineUnavailable:
            return False
        return True

    @contextlib.contextmanager
    def _translate_errors(
        self,
        operation: str,
        translate: Callable[[errors.APIError, str], exception.EngineError] | None = None,
    ) -> Iterator[None]:
        """Translate errors of the SDK. The errors contain nothing that the engine wrote.

        :param operation: completes the sentence "The Docker engine refused to ..."
        :param translate: translates an error that the engine reports
        """
        try:
            yield
        except errors.APIError as error:
            if error.status_code == 400 and _OTHER_VERSION.match(str(error.explanation)):
                self._api_version = ""
                raise exception.EngineUnavailable(
                    url=self._url,
                    reason="another version of the engine was started; the next request uses its "
                    "API version",
                ) from None
            # Nova stores the chain of exceptions with the fault, so the message is cut off.
            raise (translate or _engine_error)(error, operation) from None
        except responses.MalformedResponse as error:
            LOG.warning("The Docker engine refused %s: %.*s", operation, _LOGGED, error)
            raise exception.EngineError(
                operation=operation, reason="its response is malformed"
            ) from None
        except (requests.RequestException, errors.DockerException) as error:
            raise exception.EngineUnavailable(url=self._url, reason=str(error)) from error

    def _read_progress(self, response: Any) -> Iterator[dict[str, Any]]:
        """Yield the messages that the engine sends while it processes an image.

        :raises docker.errors.APIError: the engine or a registry reports an error
        """
        self._client._raise_for_status(response)
        for line in filter(None, response.iter_lines(chunk_size=None)):
            message = json.loads(line)
            raise_for_message(message)
            yield message


def read_credentials(registry: str, path: str) -> dict[str, Any]:
    """Return the credentials of a registry from a file of ``docker login``.

    :param path: path of the file; empty for no credentials
    """
    # Without a path, the SDK would read the file in the home directory.
    return (auth.load_config(path).resolve_authconfig(registry) if path else None) or {}


def _version(numbers: Iterable[int]) -> str:
    return ".".join(map(str, numbers))


def raise_for_message(message: dict[str, Any]) -> None:
    """Raise the error that a message of the engine reports, as for an answer with an error."""
    if "error" in message:
        raise errors.APIError("the engine reports an error", explanation=str(message["error"]))


def _engine_error(error: errors.APIError, operation: str) -> exception.EngineError:
    message = str(error.explanation or error)
    reason = engine_errors.describe(message)
    level = logging.WARNING if reason.endswith(engine_errors.OTHER) else logging.DEBUG
    LOG.log(level, "The Docker engine refused %s: %.*r", operation, _LOGGED, message)
    kind = exception.EngineError
    if isinstance(error, errors.NotFound):
        kind = exception.ContainerNotFound
        if isinstance(error, errors.ImageNotFound) or "no such image" in message.lower():
            kind = exception.EngineImageNotFound
    return kind(operation=operation, reason=reason)


def _registry_error(error: errors.APIError, operation: str) -> exception.EngineError:
    message = str(error.explanation or error)
    LOG.warning("The Docker engine refused %s: %.*r", operation, _LOGGED, message)
    return exception.EngineError(operation=operation, reason=registry_errors.describe(message))


def is_read_timeout(error: BaseException | None) -> bool:
    """Return True if the engine accepted a request and did not answer in time."""
    # A timeout during the body is raised as a ConnectionError that contains urllib3's error.
    return isinstance(error, requests.ReadTimeout) or (
        isinstance(error, requests.ConnectionError)
        and bool(error.args)
        and isinstance(error.args[0], urllib3.exceptions.ReadTimeoutError)
    )
