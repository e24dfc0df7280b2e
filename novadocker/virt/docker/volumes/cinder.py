# SPDX-License-Identifier: Apache-2.0
"""What Cinder says of the volumes of instances."""

from __future__ import annotations

from nova import context as nova_context
from nova import objects
from nova.volume import cinder


def read_image(
    context: nova_context.RequestContext, volume_id: str, properties: objects.ImageMetaProps
) -> objects.ImageMeta | None:
    """Return the image of which Cinder made a volume; None if it made the volume of none.

    A volume keeps it in its snapshots and clones.

    :param properties: of the image, as Nova knows them
    :raises nova.exception.NovaException: Nova's errors of the volume service
    """
    found = cinder.API().get(context, volume_id).get("volume_image_metadata") or {}
    if not found.get("image_id"):
        return None
    return objects.ImageMeta(
        id=found["image_id"],
        name=found.get("image_name") or "",
        checksum=found.get("checksum") or None,
        container_format=found.get("container_format") or "bare",
        disk_format=found.get("disk_format") or "raw",
        size=int(found.get("size") or 0),
        properties=properties,
    )
