# SPDX-License-Identifier: Apache-2.0
"""An instance's block device mappings in Nova's database, for calls that do not pass them."""

from __future__ import annotations

from typing import Any

from nova import context as nova_context
from nova import objects
from nova.virt import driver


def read(context: nova_context.RequestContext, instance: objects.Instance) -> dict[str, Any]:
    """Return the block devices of an instance in the form that Nova passes to drivers."""
    found = objects.BlockDeviceMappingList.get_by_instance_uuid(context, instance.uuid)
    info: dict[str, Any] = driver.get_block_device_info(instance, found)
    return info
