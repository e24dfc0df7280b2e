# SPDX-License-Identifier: Apache-2.0
"""The content of an instance's config drive. Nova's code chooses it and builds the image."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from nova import conf, objects
from nova.api.metadata import base
from nova.network import model as network_model
from nova.virt import configdrive
from oslo_concurrency import processutils
from oslo_log import log as logging
from oslo_utils import strutils

from novadocker import exception
from novadocker.virt.docker.model import Mount

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Nova copies all image properties into system_metadata, also those that it does not define.
_DEVICE_PROPERTY = "image_img_config_drive_device"

# blkid(8) and users look for the label at this path first.
DEVICE = "/dev/disk/by-label/config-2"

# Users and cloud-init's DataSourceConfigDrive look for the files in these directories.
_MOUNT_POINTS = ("/config-2", "/var/lib/cloud/seed/config_drive")


def required(instance: objects.Instance) -> bool:
    """Return True if an instance gets a config drive."""
    return bool(configdrive.required_by(instance))


def wants_device(instance: objects.Instance) -> bool:
    """Return True if an instance gets its config drive as a block device, too.

    :raises InvalidImage: the image's property img_config_drive_device is not a boolean
    """
    value = instance.system_metadata.get(_DEVICE_PROPERTY, "false")
    try:
        return required(instance) and strutils.bool_from_string(value, strict=True)
    except ValueError as error:
        raise exception.InvalidImage(
            image_id=instance.image_ref,
            reason="its property img_config_drive_device is not a boolean",
        ) from error


def build(
    instance: objects.Instance,
    network_info: network_model.NetworkInfo,
    injected_files: Sequence[tuple[str, bytes]],
    admin_password: str | None,
) -> tuple[dict[str, bytes], bytes]:
    """Return the files of an instance's config drive by path, and the image for its block device.

    The image is empty if the instance gets no block device.

    :raises StartFailed: the image can't be built on this host
    """
    metadata = base.InstanceMetadata(
        instance,
        content=list(injected_files),
        extra_md={"admin_pass": admin_password} if admin_password else {},
        network_info=network_info,
    )
    builder = configdrive.ConfigDriveBuilder(instance_md=metadata)
    files = {
        path: content.encode() if isinstance(content, str) else bytes(content)
        for path, content in builder.mdfiles
    }
    return files, _build_image(instance, builder) if wants_device(instance) else b""


def _build_image(instance: objects.Instance, builder: configdrive.ConfigDriveBuilder) -> bytes:
    # Nova needs the right to mount for a vfat image, which has 64 MiB.
    if CONF.config_drive_format != "iso9660":
        raise exception.StartFailed(
            instance_uuid=instance.uuid,
            reason="a config drive that is a block device must have config_drive_format iso9660, "
            f"but the host is configured for {CONF.config_drive_format}",
        )
    with tempfile.TemporaryDirectory(dir=CONF.instances_path) as folder:
        path = Path(folder) / "config-2.iso"
        try:
            builder.make_drive(str(path))
        except (OSError, processutils.ProcessExecutionError) as error:
            LOG.exception("Failed to build the config drive's image", instance=instance)
            raise exception.StartFailed(
                instance_uuid=instance.uuid, reason="the host can't build the config drive's image"
            ) from error
        return path.read_bytes()


def mounts(folder: str) -> tuple[Mount, ...]:
    """Return the mounts of a config drive's files.

    :param folder: directory on the host with the files
    """
    return tuple(Mount(source=folder, target=target) for target in _MOUNT_POINTS)
