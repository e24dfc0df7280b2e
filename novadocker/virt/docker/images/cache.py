# SPDX-License-Identifier: Apache-2.0
"""The engine's images as Nova's image cache: unused images are removed when they are old enough.

Each boot tags its image again, so the time of the last tag is the time of the last use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from nova import context as nova_context
from nova import objects
from nova.virt import imagecache
from oslo_log import log as logging
from oslo_utils import timeutils

from novadocker import exception, naming
from novadocker.conf import CONF
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.images import store

LOG = logging.getLogger(__name__)

_ALL = f"{naming.IMAGES}*"


class ImageCache(imagecache.ImageCacheManager):
    """The image cache, which follows the options of Nova's group ``[image_cache]``."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine

    def update(
        self,
        context: nova_context.RequestContext,  # noqa: ARG002 (Nova's signature)
        all_instances: Iterable[objects.Instance],
    ) -> None:
        """Remove the images that none of these instances uses and that are old enough."""
        used = {instance.image_ref for instance in all_instances}
        for name in self._engine.list_images(_ALL):
            image_id, tag = naming.split_image_name(name)
            with store.locked(image_id), contextlib.suppress(exception.EngineImageNotFound):
                if tag == naming.ARRIVING:
                    # The lock is free, so the nova-compute that downloaded the image was killed.
                    self._engine.remove_image(name)
                elif image_id in used:
                    self._engine.tag_image(name, *name.split(":"))
                elif self.remove_unused_base_images and self._is_old(name):
                    self._remove(name)
        LOG.info("Size of the image cache: %d MiB", self.get_disk_usage() >> 20)

    def get_disk_usage(self) -> int:
        """Return the size of all images of the driver in bytes.

        A layer that several images share is counted for each of them.
        """
        return sum(self._engine.list_images(_ALL).values())

    def _is_old(self, name: str) -> bool:
        named = self._engine.inspect_image(name).named_at
        age = CONF.image_cache.remove_unused_original_minimum_age_seconds
        return named is None or timeutils.is_older_than(named, age)

    def _remove(self, name: str) -> None:
        try:
            self._engine.remove_image(name)
        except exception.EngineError as error:
            # The engine refuses if a container that is being created uses the image.
            LOG.info("Failed to remove image %s from the cache: %s", name, error)
        else:
            LOG.info("Removed image %s from the cache", name)
