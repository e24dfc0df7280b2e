# SPDX-License-Identifier: Apache-2.0
"""Transports of an instance's data to another host: directly, or through a registry.

With each transport the destination confirms all that it received, so the source has every failure
before it gives the instance up. A new transport is a class that ``TRANSPORTS`` lists.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Protocol

from oslo_log import log as logging

from novadocker import exception, naming
from novadocker.conf import CONF
from novadocker.linux import pipes
from novadocker.linux.pipes import Write
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.migration import protocol
from novadocker.virt.docker.migration.destination import Destination
from novadocker.virt.docker.migration.registry_client import Repository

LOG = logging.getLogger(__name__)

TAG = "move"
"""Tag of a move's image in the registry until the move ends."""


class Transport(Protocol):
    """The transport of one instance's move."""

    def send_image(self, destination: Destination, image_id: str) -> None:
        """Send an image that the destination lacks.

        :raises NovaException: the image cannot be sent, or the destination's engine refuses it
        """

    def send_stream(self, destination: Destination, write: Write) -> int:
        """Send a stream and have the destination apply it; return its bytes of content.

        :raises NovaException: the stream cannot be sent or applied
        :raises OSError: the data cannot be read
        """

    def clear(self) -> None:
        """Delete what this move left between the hosts. Idempotent."""


class Kind(Protocol):
    """A class of transports."""

    def __call__(self, engine: Engine, instance_uuid: str, /) -> Transport:
        """Return the transport of an instance's move."""

    def is_configured(self) -> bool:
        """Return True if the operator's options choose this transport."""

    def clear_leftovers(self, engine: Engine, /) -> None:
        """Delete what moves left between the hosts because nova-compute died. Idempotent."""


class Direct:
    """Sends everything through the pipe of the command that speaks for the destination."""

    def __init__(self, engine: Engine, _instance_uuid: str) -> None:
        self._engine = engine

    @classmethod
    def is_configured(cls) -> bool:
        """Return True: this transport needs no option."""
        return True

    @classmethod
    def clear_leftovers(cls, _engine: Engine) -> None:
        """Do nothing: a pipe keeps nothing."""

    def send_image(self, destination: Destination, image_id: str) -> None:
        """Send the image over the pipe. Raises as ``Transport.send_image``."""
        order = protocol.Load()
        destination.send(order)
        for chunk in self._engine.save_image(image_id):
            destination.send(protocol.Frame(len(chunk)))
            destination.write(chunk)
        destination.send(protocol.Frame(0))
        destination.expect_answer(order)

    def send_stream(self, destination: Destination, write: Write) -> int:
        """Send the stream over the pipe. Raises as ``Transport.send_stream``."""
        order = protocol.Apply()
        destination.send(order)
        try:
            sent = write((os.getpid(), destination.fileno()))
        except OSError as error:
            raise destination.failure(error) from error
        destination.expect_answer(order)
        return sent

    def clear(self) -> None:
        """Do nothing: a pipe keeps nothing."""


class ThroughRegistry:
    """Sends everything through a repository of the registry that both hosts use, by digest.

    The engines push and pull the image, so only the layers travel that the registry, and then the
    destination's engine, lacks.
    """

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
        destination.ask(protocol.Pull(digest))

    def send_stream(self, destination: Destination, write: Write) -> int:
        """Send the stream as a blob. Raises as ``Transport.send_stream``."""
        with pipes.read_from(write) as (chunks, writing):
            digest = self._repository.upload(chunks).digest
            self._blobs.append(digest)
            sent = writing.result()
        destination.ask(protocol.Fetch(digest))
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


TRANSPORTS: tuple[Kind, ...] = (ThroughRegistry, Direct)
"""All transports; a move takes the first that is configured."""


def choose(engine: Engine, instance_uuid: str) -> Transport:
    """Return the transport that the operator's options choose."""
    kind = next(kind for kind in TRANSPORTS if kind.is_configured())
    return kind(engine, instance_uuid)


def clear_leftovers(engine: Engine) -> None:
    """Delete what moves left between the hosts because nova-compute died. Idempotent."""
    for kind in TRANSPORTS:
        kind.clear_leftovers(engine)


def repository(name: str) -> Repository:
    """Return a repository in the operator's registry; that of an instance's moves has its UUID."""
    return Repository(
        f"{CONF.docker.transfer_registry}/{name}",
        CONF.docker.registry_credentials_file,
        CONF.docker.api_timeout,
    )


def keep_image(engine: Engine, image_id: str) -> bool:
    """Name an image so that the image cache keeps it for now; return False if there is none."""
    try:
        # The image cache removes an image of this name when no container uses it any more.
        engine.tag_image(image_id, naming.MOVED_IMAGES, image_id.removeprefix("sha256:")[:12])
    except exception.EngineImageNotFound:
        return False
    return True


def pull_image(engine: Engine, source: Repository, digest: str, image_id: str) -> None:
    """Pull an image from a repository by digest, and remove the name that this gives it.

    :raises EngineError: the registry or the engine refuses
    :raises RegistryFailed: the digest is of another image
    """
    credentials = CONF.docker.registry_credentials_file
    engine.pull_image(source.name, digest, source.registry, credentials)
    try:
        if not keep_image(engine, image_id):
            raise exception.RegistryFailed(
                registry=source.registry, reason="it gave another image than was asked for"
            )
    finally:
        engine.remove_image(f"{source.name}@{digest}")
