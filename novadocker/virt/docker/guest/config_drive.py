# SPDX-License-Identifier: Apache-2.0
"""What is on an instance's config drive; Nova's own code decides that and builds the image."""

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

# Nova keeps all properties of the image, those that it does not know included
_DEVICE_PROPERTY = "image_img_config_drive_device"

# where blkid(8) looks first for the label, and people do
DEVICE = "/dev/disk/by-label/config-2"

# where people and cloud-init's DataSourceConfigDrive look for it
_MOUNT_POINTS = ("/config-2", "/var/lib/cloud/seed/config_drive")


def required(instance: objects.Instance) -> bool:
    """Say whether an instance is to have a config drive."""
    return bool(configdrive.required_by(instance))


def wants_device(instance: objects.Instance) -> bool:
    """Say whether an instance's image wants its config drive as a block device, too.

    :raises InvalidImage: its property is neither true nor false
    """
    value = instance.system_metadata.get(_DEVICE_PROPERTY, "false")
    try:
        return required(instance) and strutils.bool_from_string(value, strict=True)
    except ValueError as error:
        raise exception.InvalidImage(
            image_id=instance.image_ref, reason="its property img_config_drive_device is no boolean"
        ) from error


def build(
    instance: objects.Instance,
    network_info: network_model.NetworkInfo,
    injected_files: Sequence[tuple[str, bytes]],
    admin_password: str | None,
) -> tuple[dict[str, bytes], bytes]:
    """Return the files of an instance's config drive by path, and the image of its device.

    The image is empty if none is wanted.

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
    # a vfat image takes the right to mount, and 64 MiB
    if CONF.config_drive_format != "iso9660":
        raise exception.StartFailed(
            instance_uuid=instance.uuid,
            reason="the host makes no config drives that are devices: config_drive_format is "
            f"{CONF.config_drive_format}",
        )
    with tempfile.TemporaryDirectory(dir=CONF.instances_path) as folder:
        path = Path(folder) / "config-2.iso"
        try:
            builder.make_drive(str(path))
        except (OSError, processutils.ProcessExecutionError) as error:
            LOG.exception("No image of the config drive", instance=instance)
            raise exception.StartFailed(
                instance_uuid=instance.uuid, reason="the host can't make the config drive's image"
            ) from error
        return path.read_bytes()


def mounts(folder: str) -> tuple[Mount, ...]:
    """Return how a container sees the files of its config drive, which lie in ``folder``."""
    return tuple(Mount(source=folder, target=target) for target in _MOUNT_POINTS)
