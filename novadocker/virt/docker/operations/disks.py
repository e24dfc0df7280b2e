# SPDX-License-Identifier: Apache-2.0
"""The disks that Nova may ask for and that the driver does not provide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nova import exception as nova_exception
from nova import objects
from nova.virt import driver


def refuse_disks(
    flavor: objects.Flavor,
    block_device_info: dict[str, Any] | None,
    fault: Callable[[str], nova_exception.NovaException],
) -> None:
    """Refuse volumes and ephemeral disks, because an instance would silently lack them.

    :param fault: returns the exception for a reason
    :raises NovaException: there are volumes or an ephemeral disk; the exception of ``fault``
    """
    asked = {
        "volumes": driver.block_device_info_get_mapping(block_device_info),
        "an ephemeral disk": flavor.ephemeral_gb,
    }
    for disks, wanted in asked.items():
        if wanted:
            raise fault(f"The Docker driver does not provide {disks}")
