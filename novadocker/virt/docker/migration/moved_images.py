# SPDX-License-Identifier: Apache-2.0
"""Images that came to this host with a move or a backup, for the image cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from novadocker import exception, naming
from novadocker.conf import CONF
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.host import filesystem

if TYPE_CHECKING:
    from novadocker.virt.docker.migration.registry_client import Repository


def keep_image(engine: Engine, image_id: str) -> bool:
    """Name an image so that the image cache keeps it for now; return False if there is none."""
    try:
        # The image cache removes an image of this name when no container uses it any more.
        engine.tag_image(image_id, naming.MOVED_IMAGES, image_id.removeprefix("sha256:")[:12])
    except exception.EngineImageNotFound:
        return False
    return True


def pull_image(
    engine: Engine, source: Repository, digest: str, image_id: str, most: int = 0
) -> None:
    """Pull an image from a repository by digest, and remove the name that this gives it.

    :param most: bytes that the image may have; 0 means no bound
    :raises ImageTooLarge: it has more
    :raises PullCutOff: this host has no room for it, or the pull takes too long
    :raises EngineError: the registry or the engine refuses
    :raises RegistryFailed: the digest is of another image
    """
    credentials = CONF.docker.registry_credentials_file
    folder = filesystem.layers_root(engine.info())
    engine.pull_image(source.name, digest, source.registry, credentials, folder, most)
    try:
        if not keep_image(engine, image_id):
            raise exception.RegistryFailed(
                registry=source.registry, reason="it gave another image than was asked for"
            )
    finally:
        engine.remove_image(f"{source.name}@{digest}")
