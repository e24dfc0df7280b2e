# SPDX-License-Identifier: Apache-2.0
"""Which ports an instance has while they change, and what their devices are called inside.

The names are kept in Nova's own database, in the instance's system metadata, since they must be
the same after a detachment, on another host and in a namespace that is made anew.
"""

from typing import Any

from nova import context as nova_context
from nova import objects
from nova.network import model as network_model
from oslo_concurrency import lockutils

from novadocker.virt.docker.network import nic

_NAME_PREFIX = "docker_nic_"


def locked(instance_uuid: str) -> Any:
    """Keep changes of one instance's ports apart: Nova locks each port, not the instance."""
    return lockutils.lock(f"novadocker-ports-{instance_uuid}")


def read_instance(context: nova_context.RequestContext, instance_uuid: str) -> objects.Instance:
    """Read an instance with its ports and names as the last change left them.

    What Nova hands the driver was read before the lock was taken.
    """
    return objects.Instance.get_by_uuid(
        context, instance_uuid, expected_attrs=["info_cache", "system_metadata"]
    )


def with_port(
    network_info: network_model.NetworkInfo, vif: network_model.VIF
) -> network_model.NetworkInfo:
    """Return the ports with one more at the end, unless it is among them."""
    if any(port["id"] == vif["id"] for port in network_info):
        return network_info
    return network_model.NetworkInfo([*network_info, vif])


def without_port(
    network_info: network_model.NetworkInfo, vif: network_model.VIF
) -> network_model.NetworkInfo:
    """Return the ports without one."""
    return network_model.NetworkInfo(port for port in network_info if port["id"] != vif["id"])


def recorded_names(instance: objects.Instance) -> dict[str, str]:
    """Return the names of the devices inside that are recorded, by port id."""
    return {
        key.removeprefix(_NAME_PREFIX): name
        for key, name in instance.system_metadata.items()
        if key.startswith(_NAME_PREFIX)
    }


def record_names(instance: objects.Instance, network_info: network_model.NetworkInfo) -> None:
    """Record the names of the devices of exactly these ports; the caller saves the instance."""
    names = nic.device_names(network_info, recorded_names(instance))
    others = {
        key: value
        for key, value in instance.system_metadata.items()
        if not key.startswith(_NAME_PREFIX)
    }
    instance.system_metadata = {
        **others,
        **{f"{_NAME_PREFIX}{port_id}": name for port_id, name in names.items()},
    }
