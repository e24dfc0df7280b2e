# SPDX-License-Identifier: Apache-2.0
"""Data in a registry by its digest: upload, download and removal.

``dxf`` (python-dxf) speaks the registry's protocol, with basic and token authentication;
``registry_session`` restricts what a registry can make it do. Images are transferred by the engine.
https://distribution.github.io/distribution/spec/api/
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urljoin, urlsplit

import dxf
import requests
import www_authenticate
from dxf.exceptions import DXFDigestMismatchError, DXFUnauthorizedError
from oslo_log import log as logging
from urllib3.util import parse_url

from novadocker import exception, naming
from novadocker.virt.docker.engine.connection import read_credentials
from novadocker.virt.docker.migration.registry_session import (
    MAX_ANSWER_BYTES,
    RefusedAnswer,
    Session,
    host_name,
)

LOG = logging.getLogger(__name__)

# Where engines look for the certificates of registries.
CERTIFICATES = Path("/etc/docker/certs.d")

_DATA_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_DATA_CONFIG = "application/vnd.novadocker.data.config.v1+json"
_DATA_LAYER = "application/vnd.novadocker.data.v1"

_CHUNK_BYTES = 1 << 20
_LONGEST_REASON = 200

# What reading a malformed answer raises; RecursionError is of JSON with many brackets.
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)

# The parser of www_authenticate takes time quadratic in the header's length, so a longer header is
# refused.
_MAX_CHALLENGE = 4096


@dataclass(frozen=True)
class Blob:
    """Data in a registry.

    :ivar size: bytes
    """

    digest: str
    size: int


@dataclass(frozen=True)
class DataImage:
    """An image that no engine can run: it keeps data in a registry.

    :ivar config: description of the layers
    :ivar layers: the digests of the data
    :ivar blobs: of all that it needs in the registry
    """

    digest: str
    config: Mapping[str, str]
    layers: Sequence[str]
    blobs: Sequence[str]


class _Client(dxf.DXF):
    """Client of one repository: the library's, on a restricted session.

    :ivar challenge: the last answer 401
    """

    def __init__(self, registry: str, path: str, credentials_path: str, timeout: float) -> None:
        super().__init__(registry, path, auth=_authenticate)
        self.registry = registry
        self.credentials_path = credentials_path
        self.challenge: requests.Response | None = None
        self.session = Session(CERTIFICATES, registry, timeout)
        self.session.hooks["response"].append(self._note_challenge)
        self._sessions = [self.session]

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request for a resource of the repository, or one at a URL.

        After an answer 401 it authenticates and sends the request once more.
        """
        response: requests.Response = self._request(  # type: ignore[no-untyped-call]
            method, path, **options
        )
        return response

    def request_once(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request whose body can't be sent again; an answer 401 is final."""
        authenticate, self._auth = self._auth, None
        try:
            return self.request(method, path, **options)
        finally:
            self._auth = authenticate

    def forget_token(self) -> None:
        """Discard the token, so that the next request fetches a new one.

        Does nothing with basic authentication.
        """
        if self._token is not None:
            self._token = None
            self._headers = {}

    def _note_challenge(self, response: requests.Response, **_: Any) -> None:
        if response.status_code == requests.codes.unauthorized:
            self.challenge = response


class Repository:
    """A repository of a registry; serves one thread at a time.

    :param name: with the registry, as ``registry.example.com:5000/moves/1``
    :param credentials_path: a file as ``docker login`` writes it; may be empty
    :param timeout: seconds that the registry may take to connect, for each read and write, and for
        every answer except a download
    """

    def __init__(self, name: str, credentials_path: str, timeout: float) -> None:
        self.name = name
        self.registry, _, path = name.partition("/")
        self._client = _Client(self.registry, path, credentials_path, timeout)

    def upload(self, chunks: Iterable[bytes]) -> Blob:
        """Upload data as it comes, in one request of unknown length as engines do.

        :raises RegistryFailed: the registry does not answer, or refuses
        """
        digest = hashlib.sha256()
        size = 0

        def hashed() -> Iterator[bytes]:
            nonlocal size
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                yield chunk

        headers = {"Content-Type": "application/octet-stream"}
        with self._translated():
            # Because the stream can't be sent again, the token must be new when it begins. The
            # token may expire before the stream ends: the last request fetches another.
            self._client.forget_token()
            place = self._location(self._client.request("post", "blobs/uploads/"))
            place = self._location(
                self._client.request_once("patch", place, data=hashed(), headers=headers)
            )
            name = f"sha256:{digest.hexdigest()}"
            self._client.request("put", f"{place}{'&' if '?' in place else '?'}digest={name}")
        return Blob(name, size)

    def download(self, digest: str) -> Iterator[bytes]:
        """Yield the data of a digest.

        The digest is verified after the last chunk, so the caller must be able to undo.

        :raises RegistryFailed: the registry does not answer, refuses, or sent other data
        """
        with self._translated():
            found = self._client.pull_blob(digest, chunk_size=_CHUNK_BYTES)
            yield from cast(Iterable[bytes], found)

    def put_image(self, tag: str, config: Mapping[str, str], layers: Sequence[Blob]) -> DataImage:
        """Store data as an image under a tag. Raises as ``upload``."""
        described = self.upload([json.dumps(config).encode()])
        manifest = {
            "schemaVersion": 2,
            "mediaType": _DATA_MANIFEST,
            "config": {"mediaType": _DATA_CONFIG, **asdict(described)},
            "layers": [{"mediaType": _DATA_LAYER, **asdict(layer)} for layer in layers],
        }
        content = json.dumps(manifest)
        with self._translated():
            self._client.set_manifest(tag, content)
        digests = [layer.digest for layer in layers]
        digest = f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"
        return DataImage(digest, config, digests, [described.digest, *digests])

    def find_image(self, tag: str) -> DataImage | None:
        """Return the image that ``put_image`` put there last; None if there is none.

        Raises as ``upload``.
        """
        try:
            with self._translated(), _passing(404) as refused:
                content, response = self._client.get_manifest_and_response(tag)
            if refused:
                return None
            manifest = json.loads(content)
            described = _digest(manifest["config"])
            layers = [_digest(layer) for layer in manifest["layers"]]
            config = dict(json.loads(self._read_config(described)))
        except _MALFORMED as error:
            raise self._failure(f"its manifest of the tag {tag} is malformed") from error
        digest = f"sha256:{hashlib.sha256(response.content).hexdigest()}"
        return DataImage(digest, config, layers, [described, *layers])

    def resolve(self, tag: str) -> str:
        """Return the digest of an image. Raises as ``upload``."""
        with self._translated():
            digest, _ = self._client.head_manifest_and_response(tag)
        if digest is None:
            raise self._failure(f"it gives no digest of the tag {tag}")
        return digest

    def remove_blob(self, digest: str) -> None:
        """Remove data. Does nothing if the registry has no such data. Raises as ``upload``."""
        with self._translated(), _passing(404, 405) as refused:
            self._client.request("delete", f"blobs/{digest}")
        if 405 in refused:
            # Quay deletes no blobs, but collects those that no manifest names, so this is not a
            # failure.
            LOG.warning(
                "The registry does not delete blob %s of %s: its garbage collection has to",
                digest,
                self.name,
            )

    def remove_image(self, digest: str) -> None:
        """Remove an image with its tags. Does nothing if the image does not exist.

        Raises as ``upload``.
        """
        with self._translated(), _passing(404):
            self._client.request("delete", f"manifests/{digest}")

    def _read_config(self, digest: str) -> bytes:
        content = bytearray()
        for chunk in self.download(digest):
            content += chunk
            if len(content) > MAX_ANSWER_BYTES:
                raise self._failure("its configuration of an image is too long")
        return bytes(content)

    def _location(self, response: requests.Response) -> str:
        place = urljoin(response.url, response.headers.get("Location", ""))
        # The credentials may go to the registry alone, so an upload at another host is refused.
        if urlsplit(place)[:2] != ("https", self.registry):
            raise self._failure("it leads uploads to another place")
        return place

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DXFDigestMismatchError as error:
            raise self._failure("it sent other data than was asked for") from error
        except DXFUnauthorizedError as error:
            challenge = self._client.challenge
            assert challenge is not None
            raise self._failure(_status(challenge)) from error
        except requests.HTTPError as error:
            raise self._failure(_status(error.response)) from error
        except requests.RequestException as error:
            raise self._failure(_cause(error)) from error

    def _failure(self, reason: str) -> exception.RegistryFailed:
        return exception.RegistryFailed(
            registry=self.registry, reason=reason[:_LONGEST_REASON].strip()
        )


@contextmanager
def _passing(*statuses: int) -> Iterator[list[int]]:
    """Leave the block at an answer of one of the statuses, and add it to the list."""
    refused: list[int] = []
    try:
        yield refused
    except requests.HTTPError as error:
        refused.append(error.response.status_code)
        if refused[0] not in statuses:
            raise


def _authenticate(client: dxf.DXFBase, response: requests.Response) -> None:
    """Answer a registry's 401: with a new token, or from now on with name and password.

    :raises RefusedAnswer: the challenge is malformed, or its token server is not trusted or fails
    """
    assert isinstance(client, _Client)
    server = _token_server(response.headers.get("WWW-Authenticate", ""))
    host = server or client.registry
    found = read_credentials(client.registry, client.credentials_path)
    if host_name(host) != host_name(client.registry):
        # Because a registry could name any host, credentials reach only hosts that have an entry.
        found = read_credentials(host, client.credentials_path)
        if not found:
            raise RefusedAnswer(
                f"its token server is {host}, for which registry_credentials_file has no entry"
            )
        client.session.trust_with_credentials(host)
    try:
        client.authenticate(
            found.get("username"),
            found.get("password"),
            response=response,
            user_agent="novadocker",
        )
    except DXFUnauthorizedError as error:
        raise RefusedAnswer(f"the token server {host} refuses the credentials") from error
    except requests.HTTPError as error:
        reason = _status(error.response)
        raise RefusedAnswer(f"the token server {host} fails: {reason}") from error
    except _MALFORMED as error:
        raise RefusedAnswer(f"the token server {host} gives no token") from error


def _token_server(challenge: str) -> str:
    """Return host and port of the token server of a challenge; empty for basic authentication.

    :raises RefusedAnswer: the challenge is malformed, or the token server is not at https
    """
    try:
        if len(challenge) > _MAX_CHALLENGE:
            raise ValueError("too long")
        parsed = www_authenticate.parse(challenge)
        if "bearer" not in parsed:
            if "basic" not in parsed:
                raise ValueError("neither Basic nor Bearer")
            return ""
        # Because requests parses URLs so, too: urlsplit finds another host behind a backslash.
        place = parse_url(parsed["bearer"]["realm"])
    except _MALFORMED as error:
        raise RefusedAnswer(
            "its header WWW-Authenticate is malformed, or neither Basic nor Bearer"
        ) from error
    if place.scheme != "https" or place.netloc is None:
        raise RefusedAnswer("its token server is not at https")
    return place.netloc


def _digest(described: Mapping[str, Any]) -> str:
    """Return the digest of a descriptor.

    :raises ValueError: it is malformed
    """
    digest: str = described["digest"]
    if not naming.DIGEST.fullmatch(digest):
        raise ValueError(f"{digest} is not a digest")
    return digest


def _status(response: requests.Response) -> str:
    """Return the status of an error, and the server's reason."""
    return f"{response.status_code} {_reason(response)}"


def _reason(response: requests.Response) -> str:
    """Return the message of an error's body if that is well-formed, otherwise the status line's."""
    try:
        found = response.json()["errors"][0]
        return f"{found['message']}: {_detail(found.get('detail'))}".removesuffix(": ")
    except _MALFORMED:
        return str(response.reason)


def _detail(found: object) -> str:
    """Return the text of an error's detail; an error of the storage has only its number there."""
    if not isinstance(found, dict):
        return str(found or "")
    number = found.get("Err")
    return os.strerror(number) if isinstance(number, int) else _detail(found.get("Enclosed"))


def _cause(error: BaseException) -> str:
    """Return the text of the innermost error."""
    reason = getattr(error, "reason", None) or (error.args[0] if error.args else None)
    if isinstance(reason, BaseException):
        return _cause(reason)
    return str(error)
