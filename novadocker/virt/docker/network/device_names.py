# SPDX-License-Identifier: Apache-2.0
"""The ports of an instance while they change, and the recorded names of its guest devices.

The names are in the instance's system metadata in Nova's database, because a device keeps its name
when another port is detached, on another host and in a new namespace.
"""

from __future__ import annotations

from typing import Any

from nova import context as nova_context
from nova import objects
from nova.network import model as network_model
from oslo_concurrency import lockutils

from novadocker.virt.docker.network import nic

# Because Nova copies the system metadata to the properties of snapshots, except for names with this
# prefix (nova.compute.utils: NON_INHERITABLE_IMAGE_NAMESPACES), the records have it.
_NAME_PREFIX = "os_glance_docker_nic_"
# Earlier releases of the driver recorded the names with this prefix.
_OLD_PREFIX = "docker_nic_"


def locked(instance_uuid: str) -> Any:
    """Return a lock for changes of one instance's ports: Nova locks a port, not the instance."""
    return lockutils.lock(f"novadocker-ports-{instance_uuid}")


def read_instance(context: nova_context.RequestContext, instance_uuid: str) -> objects.Instance:
    """Read an instance with its current ports and names from Nova's database.

    Nova read the instance that it passes to the driver before the driver took the lock.
    """
    return objects.Instance.get_by_uuid(
        context, instance_uuid, expected_attrs=["info_cache", "system_metadata"]
    )


def with_port(
    network_info: network_model.NetworkInfo, vif: network_model.VIF
) -> network_model.NetworkInfo:
    """Return the ports with ``vif`` appended, unless it is among them."""
    if any(port["id"] == vif["id"] for port in network_info):
        return network_info
    return network_model.NetworkInfo([*network_info, vif])


def without_port(
    network_info: network_model.NetworkInfo, vif: network_model.VIF
) -> network_model.NetworkInfo:
    """Return the ports without ``vif``."""
    return network_model.NetworkInfo(port for port in network_info if port["id"] != vif["id"])


def recorded_names(instance: objects.Instance) -> dict[str, str]:
    """Return the recorded names of the guest devices, by port id."""
    return {
        key.removeprefix(prefix): name
        for prefix in (_OLD_PREFIX, _NAME_PREFIX)
        for key, name in instance.system_metadata.items()
        if key.startswith(prefix)
    }


def record_names(instance: objects.Instance, network_info: network_model.NetworkInfo) -> None:
    """Record the names of the guest devices of these ports, and delete all other records.

    The caller saves the instance.
    """
    names = nic.device_names(network_info, recorded_names(instance))
    others = {
        key: value
        for key, value in instance.system_metadata.items()
        if not key.startswith((_OLD_PREFIX, _NAME_PREFIX))
    }
    instance.system_metadata = {
        **others,
        **{f"{_NAME_PREFIX}{port_id}": name for port_id, name in names.items()},
    }
