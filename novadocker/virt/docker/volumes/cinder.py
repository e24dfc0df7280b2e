# SPDX-License-Identifier: Apache-2.0
"""What Cinder says of the volumes of instances."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from glanceclient import exc as glance_errors
from keystoneauth1 import exceptions as keystone_errors
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.image import glance
from nova.volume import cinder
from oslo_log import log as logging

from novadocker import exception, naming
from novadocker.virt.docker.volumes.root import VolumeImage

LOG = logging.getLogger(__name__)

_MD5 = re.compile(r"[0-9a-f]{32}")
_LENGTH = re.compile(r"[0-9]{1,18}")
_NO_RECORD = (
    nova_exception.NovaException,
    keystone_errors.ClientException,
    glance_errors.ClientException,
)


def read_image(
    context: nova_context.RequestContext, volume_id: str, properties: objects.ImageMetaProps
) -> VolumeImage | None:
    """Return the image of which Cinder made a volume; None if it made the volume of none.

    A volume keeps it in its snapshots and clones. Tenants can change what Cinder says of it, so
    all but the id is Glance's record. Without one, because the image is deleted or Glance does not
    answer, the driver can use only what the engine has under the id and the checksum.

    :param properties: of the image, as Nova knows them
    :raises VolumeRefused: what Cinder says is malformed
    :raises nova.exception.NovaException: Nova's errors of the volume service
    """
    found = cinder.API().get(context, volume_id).get("volume_image_metadata") or {}
    image_id = found.get("image_id")
    if not image_id:
        return None
    if not naming.UUID.fullmatch(str(image_id)):
        raise exception.VolumeRefused(
            volume_id=volume_id, reason="Cinder's record of it has no valid id of an image"
        )
    try:
        record = glance.API().get(context, image_id)
    except _NO_RECORD as error:
        LOG.warning("Failed to read the record of image %s: %s", image_id, error)
        return VolumeImage(_image(image_id, found, properties), readable=False)
    return VolumeImage(_image(image_id, record, properties), readable=True)


def _image(
    image_id: str, record: Mapping[str, Any], properties: objects.ImageMetaProps
) -> objects.ImageMeta:
    checksum, length = str(record.get("checksum") or ""), str(record.get("size") or "")
    found = objects.ImageMeta(
        id=image_id,
        name=str(record.get("name") or record.get("image_name") or ""),
        container_format=str(record.get("container_format") or "bare"),
        disk_format=str(record.get("disk_format") or "raw"),
        size=int(length) if _LENGTH.fullmatch(length) else 0,
        properties=properties,
    )
    # Images of registries have none, and the field cannot be None.
    if _MD5.fullmatch(checksum):
        found.checksum = checksum
    return found
