# SPDX-License-Identifier: Apache-2.0
"""The transport through a repository of the registry that both hosts use."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

from oslo_log import log as logging

from novadocker import exception
from novadocker.conf import CONF
from novadocker.linux import pipes
from novadocker.linux.pipes import Write
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.migration import moved_images, protocol
from novadocker.virt.docker.migration.destination import Destination
from novadocker.virt.docker.migration.transports.transport import Execute, Receiver

if TYPE_CHECKING:
    from novadocker.virt.docker.migration.registry_client import Repository

LOG = logging.getLogger(__name__)

TAG = "move"
"""Tag of a move's image in the registry until the move ends."""

_DOWNLOAD_SECONDS = 3900.0
"""How long the source waits for the answer to an order to download.

The privileged call that applies a download and syncs the disk ends after 3600 s.
"""


@dataclass(frozen=True)
class Pull(protocol.Reference):
    """Order to pull the instance's image from the registry, by the digest of its manifest."""

    KEY = "pull"
    ANSWER = protocol.Loaded
    SECONDS = _DOWNLOAD_SECONDS


@dataclass(frozen=True)
class Fetch(protocol.Reference):
    """Order to download a stream from the registry and apply it to the staged directories."""

    KEY = "fetch"
    ANSWER = protocol.Applied
    SECONDS = _DOWNLOAD_SECONDS


_CLIENT = {"dxf": "python-dxf", "www_authenticate": "www-authenticate"}
"""Modules of the registry's client, and their packages in a package index."""


def check_client() -> None:
    """Check that the client of the operator's registry is installed, if there is a registry.

    :raises InvalidConfiguration: a package of the client is missing
    """
    missing = [package for module, package in _CLIENT.items() if find_spec(module) is None]
    if missing and ThroughRegistry.is_configured():
        raise exception.InvalidConfiguration(
            reason="[docker] transfer_registry needs the Python packages "
            f"{' and '.join(missing)}; install them for the Python of nova-compute"
        )


def repository(name: str) -> Repository:
    """Return a repository in the operator's registry; that of an instance's moves has its UUID."""
    # Because distributions lack the client's packages, hosts without a registry do not import it.
    from novadocker.virt.docker.migration.registry_client import Repository

    return Repository(
        f"{CONF.docker.transfer_registry}/{name}",
        CONF.docker.registry_credentials_file,
        CONF.docker.api_timeout,
    )


def _pull(receiver: Receiver, order: Pull) -> None:
    """Pull the instance's image from the registry. Raises as ``moved_images.pull_image``."""
    source = _source(receiver)
    moved_images.pull_image(
        receiver.engine, source, order.digest, receiver.greeting.image, receiver.most
    )


def _fetch(receiver: Receiver, order: Fetch) -> None:
    """Download a stream from the registry and apply it.

    :raises RegistryFailed: the registry refuses, or has other data
    :raises StreamError: the stream is malformed
    """
    with pipes.written_with(_source(receiver).download(order.digest)) as stream:
        receiver.stage(stream)


def _source(receiver: Receiver) -> Repository:
    """Return the repository of a move to this host.

    :raises ValueError: this host has no registry for moves
    """
    if not ThroughRegistry.is_configured():
        raise ValueError("its option transfer_registry is not set")
    return repository(receiver.greeting.uuid)


class ThroughRegistry:
    """Sends everything through a repository of the registry that both hosts use, by digest.

    The engines push and pull the image, so only the layers travel that the registry, and then the
    destination's engine, lacks.
    """

    ORDERS: ClassVar[Mapping[type[protocol.Order], Execute]] = {Pull: _pull, Fetch: _fetch}

    def __init__(self, engine: Engine, instance_uuid: str) -> None:
        self._engine = engine
        self._instance_uuid = instance_uuid
        self._repository = repository(instance_uuid)
        self._blobs: list[str] = []
        self._images: list[str] = []

    @classmethod
    def is_configured(cls) -> bool:
        """Return True if the operator names a registry for moves."""
        return bool(CONF.docker.transfer_registry)

    @classmethod
    def clear_leftovers(cls, engine: Engine) -> None:
        """Delete the images of moves from registry and engine, and the moves' blobs. Idempotent."""
        if not cls.is_configured():
            return
        for name in engine.list_images(f"{CONF.docker.transfer_registry}/*"):
            path, _, tag = name.rpartition(":")
            left = cls(engine, path.rpartition("/")[2])
            with suppress(exception.RegistryFailed):
                left._images.append(left._repository.resolve(tag))
            left.clear()

    def send_image(self, destination: Destination, image_id: str) -> None:
        """Send the image through the registry. Raises as ``Transport.send_image``."""
        name = self._repository.name
        # The tag stays until the image in the registry is deleted, so that clear_leftovers finds
        # the image if nova-compute dies.
        self._engine.tag_image(image_id, name, TAG)
        digest = self._engine.push_image(
            name, TAG, self._repository.registry, CONF.docker.registry_credentials_file
        )
        self._images.append(digest)
        destination.ask(Pull(digest))

    def send_stream(self, destination: Destination, write: Write) -> int:
        """Send the stream as a blob. Raises as ``Transport.send_stream``."""
        with pipes.read_from(write) as (chunks, writing):
            digest = self._repository.upload(chunks).digest
            self._blobs.append(digest)
            sent = writing.result()
        destination.ask(Fetch(digest))
        return sent

    def clear(self) -> None:
        """Delete the blobs and images of this move in the registry, and the image's tag here."""
        try:
            for digest in self._blobs:
                self._repository.remove_blob(digest)
            for digest in self._images:
                self._repository.remove_image(digest)
            self._engine.remove_image(f"{self._repository.name}:{TAG}")
        except (
            exception.RegistryFailed,
            exception.EngineError,
            exception.EngineUnavailable,
        ) as error:
            LOG.warning(
                "Failed to delete data of a move in %s: %s",
                self._repository.name,
                error,
                instance_uuid=self._instance_uuid,
            )
