# SPDX-License-Identifier: Apache-2.0
"""What becomes of a volume that a server boots from, by what is on it; pure."""

from __future__ import annotations

from dataclasses import dataclass

from nova import exception as nova_exception
from nova import objects

from novadocker.privsep.guest.root_volumes import (
    BLANK,
    FILE_SYSTEM,
    FILLED,
    IMAGE,
    UNFINISHED,
)


@dataclass(frozen=True)
class VolumeImage:
    """The image of a volume.

    :ivar readable: False if Glance does not show it to the user; then its record is what the volume
        says, which tenants can change
    """

    meta: objects.ImageMeta
    readable: bool


@dataclass(frozen=True)
class Source:
    """How a server's root directory comes about.

    :ivar image: the image of the container's settings; None if the volume has no container image
    :ivar fills: True if the image's files have to be written to the volume first
    :ivar size: of the volume in bytes
    """

    image: objects.ImageMeta | None
    fills: bool
    size: int


def source(content: str, size: int, found: VolumeImage | None) -> Source:
    """Return how a volume becomes a root directory.

    Nothing is ever written over content that neither Cinder nor the driver has put there. Files of
    an image that the user cannot read are written only to a volume that has the image's bytes.

    :param content: what is on the volume: a constant of ``privsep.guest.root_volumes``
    :param found: the image of which Cinder made the volume, or that Nova names for the server
    :raises ValueError: the server cannot boot from the volume; the message is the reason
    """
    if content == FILE_SYSTEM:
        if found is not None and found.meta.container_format == "docker":
            raise ValueError(
                f"it has a file system that was not made of its image {found.meta.id}; nothing on "
                "it was changed"
            )
        # A file system that is an image of its own has no settings of a container.
        return Source(None, fills=False, size=size)
    if content not in (FILLED, UNFINISHED, IMAGE, BLANK):
        raise ValueError(
            "it has something on it that is neither an ext4 file system nor its image; nothing on "
            "it was changed"
        )
    if found is None:
        raise ValueError(f"it is {content}, and neither Cinder nor the request names an image")
    if content in (BLANK, UNFINISHED) and not found.readable:
        raise ValueError(f"it is {content}, and Glance shows the user no image {found.meta.id}")
    return Source(found.meta, fills=content != FILLED, size=size)


def check_fits(image_bytes: int, found: Source) -> None:
    """Check that an image is smaller than the volume that it has to be written to.

    :raises VolumeSmallerThanMinDisk: it is not
    """
    if found.fills and image_bytes >= found.size:
        raise nova_exception.VolumeSmallerThanMinDisk(
            volume_size=found.size, image_min_disk=image_bytes
        )
