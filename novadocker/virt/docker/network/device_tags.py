# SPDX-License-Identifier: Apache-2.0
"""Tags that a tenant gave to ports and to the root disk, in the form that Nova's metadata shows."""

from nova import context as nova_context
from nova import objects
from nova.network import model as network_model


def device_metadata(
    context: nova_context.RequestContext,
    instance: objects.Instance,
    network_info: network_model.NetworkInfo,
) -> objects.InstanceDeviceMetadata:
    """Return the tagged devices of an instance; Nova shows them once the instance is saved.

    A container has no bus. A port is known by its MAC, and the root disk is the only one.
    """
    tags = {
        vif.uuid: vif.tag
        for vif in objects.VirtualInterfaceList.get_by_instance_uuid(context, instance.uuid)
        if vif.tag
    }
    disks = objects.BlockDeviceMappingList.get_by_instance_uuid(context, instance.uuid)
    return objects.InstanceDeviceMetadata(
        devices=[
            objects.NetworkInterfaceMetadata(mac=vif["address"], tags=[tags[vif["id"]]])
            for vif in network_info
            if vif["id"] in tags
        ]
        + [objects.DiskMetadata(tags=[disk.tag]) for disk in disks if disk.is_root and disk.tag]
    )
