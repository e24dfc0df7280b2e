# SPDX-License-Identifier: Apache-2.0
"""The volumes that instances boot from: examined, filled and checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from nova import context as nova_context
from nova import objects
from oslo_log import log as logging

from novadocker import exception, privsep
from novadocker.linux import pipes
from novadocker.virt.docker.operations.services import Services
from novadocker.virt.docker.volumes import root
from novadocker.virt.docker.volumes.root import Source, VolumeImage
from novadocker.virt.docker.volumes.volume import Volume

LOG = logging.getLogger(__name__)

# Two blocks of zeros (tar(5)).
_END = bytes(1024)


class RootVolumes:
    """Prepares the volumes that the instances of one host boot from."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._volumes = services.root_volumes

    def examine(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_meta: objects.ImageMeta,
        volume: Volume,
    ) -> Source:
        """Return how a connected volume becomes the root directory of an instance.

        :param image_meta: Nova's record of the image, which has no id for most volumes
        :raises RequestRefused: the instance cannot boot from the volume
        """
        try:
            found = self._services.read_volume_image(context, volume.id, image_meta.properties)
        except exception.VolumeRefused as error:
            # No other host would boot from it.
            raise exception.RequestRefused(
                instance_uuid=instance.uuid, reason=error.format_message()
            ) from error
        if found is None and instance.image_ref:
            found = VolumeImage(image_meta, readable=True)
        image = found.meta if found else None
        checksum = (image.obj_attr_is_set("checksum") and image.checksum) if image else None
        length = (image.obj_attr_is_set("size") and image.size) if image else None
        with _told(volume):
            content, size = self._volumes.examine(
                instance.uuid, image.id if image else None, checksum or "", length or 0
            )
        try:
            return root.source(content, size, found)
        except ValueError as error:
            raise exception.RequestRefused(
                instance_uuid=instance.uuid,
                reason=f"The server cannot boot from volume {volume.id}: {error}",
            ) from error

    def fill(
        self,
        instance: objects.Instance,
        volume: Volume,
        image: objects.ImageMeta,
        container_id: str,
    ) -> None:
        """Write the files of a container that never ran to the volume of its instance.

        A failure leaves the volume marked, so that the next build begins again.

        :raises VolumeFailed: the volume is too small or cannot be written
        """
        LOG.info("Filling volume %s", volume.id, instance=instance)
        files = self._services.engine.export_container(container_id)
        with _told(volume):
            with pipes.written_with(_whole(files)) as archive:
                self._volumes.fill(instance.uuid, image.id, archive)
            self._volumes.complete(instance.uuid, image.id)


def _whole(archive: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the chunks of a tar archive.

    The engine ends its answer as usual after an error, with the error's text in place of the rest.

    :raises StreamError: the archive has no end
    """
    last = b""
    for chunk in archive:
        last = (last + chunk)[-len(_END) :]
        yield chunk
    if last != _END:
        raise pipes.StreamError("the engine did not export all files of the container")


@contextmanager
def _told(volume: Volume) -> Iterator[None]:
    """Raise an error of the block as one of the volume."""
    try:
        yield
    except (OSError, pipes.StreamError, *privsep.UNANSWERED) as error:
        raise exception.VolumeFailed(volume_id=volume.id, reason=str(error)) from error
