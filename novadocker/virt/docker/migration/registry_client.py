# SPDX-License-Identifier: Apache-2.0
"""Data in a registry by its digest: put there, fetched, removed.

Of https://distribution.github.io/distribution/spec/api/ what a server's data needs; images are left
to the engine. Always over TLS.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from oslo_log import log as logging

from novadocker import exception
from novadocker.virt.docker.engine.connection import read_credentials

LOG = logging.getLogger(__name__)

# where engines look for the certificates of registries
CERTIFICATES = Path("/etc/docker/certs.d")

# of an image's description, as engines put it there
_MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
)

_DATA_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_DATA_CONFIG = "application/vnd.novadocker.data.config.v1+json"
_DATA_LAYER = "application/vnd.novadocker.data.v1"

_CHUNK_BYTES = 1 << 20
_LONGEST_REASON = 200


@dataclass(frozen=True)
class Blob:
    """Data in a registry.

    :ivar size: in bytes
    """

    digest: str
    size: int


@dataclass(frozen=True)
class DataImage:
    """An image that no engine can run: it keeps data in a registry.

    :ivar config: says what the layers are
    :ivar layers: the digests of the data
    :ivar blobs: of all that it needs in the registry
    """

    digest: str
    config: Mapping[str, str]
    layers: Sequence[str]
    blobs: Sequence[str]


class Repository:
    """A repository of a registry.

    :param name: with the registry, as ``registry.example.com:5000/moves/1``
    :param credentials_path: a file as of ``docker login``; may be empty
    :param timeout: seconds that the registry may take for nothing
    """

    def __init__(self, name: str, credentials_path: str, timeout: float) -> None:
        self.name = name
        self.registry, _, path = name.partition("/")
        self._url = f"https://{self.registry}/v2/{path}/"
        self._timeout = timeout
        self._session = requests.Session()
        # neither a proxy nor credentials of the environment
        self._session.trust_env = False
        authority = CERTIFICATES / self.registry / "ca.crt"
        if authority.exists():
            self._session.verify = str(authority)
        found = read_credentials(self.registry, credentials_path)
        if found:
            self._session.auth = (found["username"], found["password"])

    def upload(self, chunks: Iterable[bytes]) -> Blob:
        """Put data there as it comes.

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

        place = self._location(self._ask("POST", "blobs/uploads/"))
        headers = {"Content-Type": "application/octet-stream"}
        place = self._location(self._ask("PATCH", place, data=hashed(), headers=headers))
        name = f"sha256:{digest.hexdigest()}"
        self._ask("PUT", f"{place}{'&' if '?' in place else '?'}digest={name}")
        return Blob(name, size)

    def download(self, digest: str) -> Iterator[bytes]:
        """Yield the data of a digest; who uses it before its end must be able to take that back.

        :raises RegistryFailed: the registry does not answer, refuses, or sent something else
        """
        found = hashlib.sha256()
        with self._translated(), self._ask("GET", f"blobs/{digest}", stream=True) as response:
            for chunk in response.iter_content(_CHUNK_BYTES):
                found.update(chunk)
                yield chunk
        if f"sha256:{found.hexdigest()}" != digest:
            raise self._failure("it sent other data than was asked for")

    def put_image(self, tag: str, config: Mapping[str, str], layers: Sequence[Blob]) -> DataImage:
        """Keep data under a tag. Raises as ``upload``."""
        described = self.upload([json.dumps(config).encode()])
        manifest = {
            "schemaVersion": 2,
            "mediaType": _DATA_MANIFEST,
            "config": {"mediaType": _DATA_CONFIG, **asdict(described)},
            "layers": [{"mediaType": _DATA_LAYER, **asdict(layer)} for layer in layers],
        }
        content = json.dumps(manifest).encode()
        self._ask("PUT", f"manifests/{tag}", data=content, headers={"Content-Type": _DATA_MANIFEST})
        digests = [layer.digest for layer in layers]
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        return DataImage(digest, config, digests, [described.digest, *digests])

    def find_image(self, tag: str) -> DataImage | None:
        """Return what ``put_image`` put there last. Raises as ``upload``."""
        response = self._ask(
            "GET", f"manifests/{tag}", absent=True, headers={"Accept": _DATA_MANIFEST}
        )
        if not response.ok:
            return None
        try:
            manifest = response.json()
            described = str(manifest["config"]["digest"])
            config = b"".join(self.download(described))
            layers = [str(layer["digest"]) for layer in manifest["layers"]]
            digest = f"sha256:{hashlib.sha256(response.content).hexdigest()}"
            return DataImage(digest, dict(json.loads(config)), layers, [described, *layers])
        except (ValueError, LookupError, TypeError) as error:
            raise self._failure(f"what {tag} names there is not well-formed") from error

    def resolve(self, tag: str) -> str:
        """Return the digest of an image. Raises as ``upload``."""
        response = self._ask("HEAD", f"manifests/{tag}", headers={"Accept": ", ".join(_MANIFESTS)})
        return str(response.headers.get("Docker-Content-Digest"))

    def remove_blob(self, digest: str) -> None:
        """Remove data; absent is fine. Raises as ``upload``."""
        self._ask("DELETE", f"blobs/{digest}", absent=True)

    def remove_image(self, digest: str) -> None:
        """Remove an image with its tags; absent is fine. Raises as ``upload``."""
        self._ask("DELETE", f"manifests/{digest}", absent=True)

    def _ask(
        self, method: str, path: str, absent: bool = False, **options: Any
    ) -> requests.Response:
        with self._translated():
            response = self._session.request(
                method, urljoin(self._url, path), timeout=self._timeout, **options
            )
        if response.ok or (absent and response.status_code == requests.codes.not_found):
            return response
        raise self._failure(f"{response.status_code} {_reason(response)}")

    def _location(self, response: requests.Response) -> str:
        place = urljoin(response.url, response.headers.get("Location", ""))
        # the credentials are not for others, and nothing goes over plain HTTP
        if urlsplit(place)[:2] != urlsplit(self._url)[:2]:
            raise self._failure("it leads uploads to another place")
        return place

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except requests.RequestException as error:
            raise self._failure(_cause(error)) from error

    def _failure(self, reason: str) -> exception.RegistryFailed:
        return exception.RegistryFailed(
            registry=self.registry, reason=reason[:_LONGEST_REASON].strip()
        )


def _reason(response: requests.Response) -> str:
    """Return what the registry says of an error, in its own words if they are well-formed."""
    try:
        found = response.json()["errors"][0]
        return f"{found['message']}: {_detail(found.get('detail'))}".removesuffix(": ")
    except (ValueError, LookupError, TypeError):
        return str(response.reason)


def _detail(found: object) -> str:
    """Return the words of an error's detail; of its storage the registry tells a number."""
    if not isinstance(found, dict):
        return str(found or "")
    number = found.get("Err")
    return os.strerror(number) if isinstance(number, int) else _detail(found.get("Enclosed"))


def _cause(error: BaseException) -> str:
    """Return the words of the error that others were made of."""
    reason = getattr(error, "reason", None) or (error.args[0] if error.args else None)
    if isinstance(reason, BaseException):
        return _cause(reason)
    return str(error)
