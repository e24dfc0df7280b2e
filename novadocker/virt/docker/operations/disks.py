# SPDX-License-Identifier: Apache-2.0
"""The disks that Nova may ask for and that the driver does not provide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nova import exception as nova_exception
from nova import objects

from novadocker import exception
from novadocker.conf import CONF
from novadocker.virt.docker.volumes import volume as volumes


def refuse_disks(
    flavor: objects.Flavor,
    block_device_info: dict[str, Any] | None,
    fault: Callable[[str], nova_exception.NovaException],
) -> None:
    """Refuse an ephemeral disk, and volumes that no host can attach.

    :param fault: returns the exception for a reason
    :raises NovaException: there is such a disk; the exception of ``fault``
    """
    if flavor.ephemeral_gb:
        raise fault("The Docker driver does not provide an ephemeral disk")
    try:
        for volume in volumes.from_block_devices(block_device_info):
            volumes.check_mode(volume, CONF.docker.volume_modes)
    except exception.VolumeRefused as error:
        raise fault(error.format_message()) from error
