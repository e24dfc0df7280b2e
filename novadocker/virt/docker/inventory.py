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
        orc.VCPU: resources.vcpus,
        orc.PCPU: resources.pcpus,
        orc.MEMORY_MB: resources.memory_mb,
        orc.DISK_GB: resources.disk_gb,
    }
    return {
        resource: {
            "total": total,
            "min_unit": 1,
            "max_unit": total,
            "step_size": 1,
            # a CPU of a server's own is never shared
            "allocation_ratio": 1.0 if resource == orc.PCPU else ratios[resource],
            "reserved": min(reserved.get(resource, 0), total),
        }
        for resource, total in totals.items()
        # Placement knows no inventory of nothing
        if total
    }


def quiesced(known: Inventory) -> Inventory:
    """Return inventories of the same size with nothing left to claim.

    A host whose engine is away must attract no server, nor may it look empty: totals of zero
    would make Placement refuse to keep the allocations that exist.
    """
    return {resource: {**row, "reserved": row["total"]} for resource, row in known.items()}
