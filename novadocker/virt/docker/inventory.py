# SPDX-License-Identifier: Apache-2.0
"""The host's resources as Placement's inventories; pure."""

from collections.abc import Mapping
from typing import Any

import os_resource_classes as orc

from novadocker.virt.docker.host import Resources

Inventory = dict[str, dict[str, Any]]


def inventory(
    resources: Resources, ratios: Mapping[str, float], reserved: Mapping[str, int]
) -> Inventory:
    """Return the inventories of a host.

    :param ratios: allocation ratio by resource class
    :param reserved: units kept for the host itself, by resource class
    """
    totals = {
        orc.VCPU: resources.cpus,
        orc.MEMORY_MB: resources.memory_mb,
        orc.DISK_GB: resources.disk_gb,
    }
    return {
        resource: {
            "total": total,
            "min_unit": 1,
            "max_unit": total,
            "step_size": 1,
            "allocation_ratio": ratios[resource],
            "reserved": min(reserved[resource], total),
        }
        for resource, total in totals.items()
    }


def quiesced(known: Inventory) -> Inventory:
    """Return inventories of the same size with nothing left to claim.

    A host whose engine is away must attract no server, nor may it look empty: totals of zero
    would make Placement refuse to keep the allocations that exist.
    """
    return {resource: {**row, "reserved": row["total"]} for resource, row in known.items()}
