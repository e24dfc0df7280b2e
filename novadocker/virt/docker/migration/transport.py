# SPDX-License-Identifier: Apache-2.0
"""The two ways of a server's data to another host: straight there, or through a registry.

On both, the command that speaks for the other host is told what comes, and says when it has that.
So whatever breaks, on the way or there, is known before the source lets the server go.
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
from novadocker.virt.docker.migration.protocol import Conversation
from novadocker.virt.docker.migration.registry_client import Repository

LOG = logging.getLogger(__name__)

# of a server's image in the registry, as long as the move lasts
TAG = "move"


class Way(Protocol):
    """How data gets to another host."""

    def send_image(self, talk: Conversation, image_id: str) -> None:
        """Send an image that the other host lacks.

        :raises NovaException: it can't be sent, or the other engine refuses it
        """

    def send_stream(self, talk: Conversation, write: Write) -> int:
        """Send a stream, which the other host then has applied; return its bytes of content.

        :raises NovaException: it can't be sent or kept
        :raises OSError: it can't be read
        """

    def clear(self) -> None:
        """Remove what is left on the way; nothing is fine."""


class Direct:
    """Through the command's own pipe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def send_image(self, talk: Conversation, image_id: str) -> None:
        """See ``Way``."""
        talk.tell({"load": True})
        for chunk in self._engine.save_image(image_id):
            talk.tell({"bytes": len(chunk)})
            talk.write(chunk)
        talk.tell({"bytes": 0})
        talk.expect("loaded")

    def send_stream(self, talk: Conversation, write: Write) -> int:
        """See ``Way``."""
        talk.tell({"apply": True})
        try:
            sent = write((os.getpid(), talk.fileno()))
        except OSError as error:
            raise talk.refusal(error) from error
        talk.expect("applied")
        return sent

    def clear(self) -> None:
        """See ``Way``."""


class ThroughRegistry:
    """Through a repository of the registry that both hosts use, by digest.

    The engines carry the image: of its layers travel those that the registry, and then the other
    engine, lacks.
    """

    def __init__(self, engine: Engine, repository: Repository) -> None:
        self._engine = engine
        self._repository = repository
        self._blobs: list[str] = []
        self._images: list[str] = []

    def send_image(self, talk: Conversation, image_id: str) -> None:
        """See ``Way``."""
        name = self._repository.name
        # until what it names in the registry is gone, too
        self._engine.tag_image(image_id, name, TAG)
        digest = self._engine.push_image(
            name, TAG, self._repository.registry, CONF.docker.registry_credentials_file
        )
        self._images.append(digest)
        talk.tell({"pull": digest})
        talk.expect("loaded")

    def send_stream(self, talk: Conversation, write: Write) -> int:
        """See ``Way``."""
        with pipes.read_from(write) as (chunks, writing):
            digest = self._repository.upload(chunks).digest
            self._blobs.append(digest)
            sent = writing.result()
        talk.tell({"fetch": digest})
        talk.expect("applied")
        return sent

    def find(self, tag: str) -> None:
        """Take on an image that the registry has."""
        with suppress(exception.RegistryFailed):
            self._images.append(self._repository.resolve(tag))

    def clear(self) -> None:
        """See ``Way``."""
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
            LOG.warning("Something of a move is left in %s: %s", self._repository.name, error)


def repository(name: str) -> Repository:
    """Return a repository in the operator's registry; that of a server's moves has its uuid."""
    return Repository(
        f"{CONF.docker.transfer_registry}/{name}",
        CONF.docker.registry_credentials_file,
        CONF.docker.api_timeout,
    )


def way(engine: Engine, instance_uuid: str) -> Way:
    """Return the way that the operator chose."""
    if CONF.docker.transfer_registry:
        return ThroughRegistry(engine, repository(instance_uuid))
    return Direct(engine)


def keep_image(engine: Engine, image_id: str) -> bool:
    """Tell whether the engine has an image; one that it has does not age for now."""
    try:
        # the image cache removes it when no container has it any more
        engine.tag_image(image_id, naming.MOVED_IMAGES, image_id.removeprefix("sha256:")[:12])
    except exception.EngineImageNotFound:
        return False
    return True


def pull_image(engine: Engine, place: Repository, digest: str, image_id: str) -> None:
    """Fetch an image, which has its name of the registry no longer than that.

    :raises EngineError: the registry or the engine refuses
    :raises RegistryFailed: it was another image
    """
    credentials = CONF.docker.registry_credentials_file
    engine.pull_image(place.name, digest, place.registry, credentials)
    try:
        if not keep_image(engine, image_id):
            raise exception.RegistryFailed(
                registry=place.registry, reason="it gave another image than was asked for"
            )
    finally:
        engine.remove_image(f"{place.name}@{digest}")


def clear_left(engine: Engine) -> None:
    """Remove what moves have left in the registry that nova-compute's end cut off."""
    if not CONF.docker.transfer_registry:
        return
    for name in engine.list_images(f"{CONF.docker.transfer_registry}/*"):
        path, _, tag = name.rpartition(":")
        left = ThroughRegistry(engine, repository(path.rpartition("/")[2]))
        left.find(tag)
        left.clear()
