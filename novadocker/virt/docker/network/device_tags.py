# SPDX-License-Identifier: Apache-2.0
"""Tags of ports and of disks, in the form that Nova's metadata service returns."""

from __future__ import annotations

from nova import context as nova_context
from nova import objects
from nova.network import model as network_model


def device_metadata(
    context: nova_context.RequestContext,
    instance: objects.Instance,
    network_info: network_model.NetworkInfo,
) -> objects.InstanceDeviceMetadata:
    """Return the tagged devices of an instance; Nova shows them after the instance is saved.

    No device has a bus, because a container has none. The MAC address identifies a port, and the
    path a volume.
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
        + [_disk(disk) for disk in disks if disk.tag and (disk.is_root or disk.is_volume)]
    )


def _disk(disk: objects.BlockDeviceMapping) -> objects.DiskMetadata:
    if not disk.is_volume:
        return objects.DiskMetadata(tags=[disk.tag])
    return objects.DiskMetadata(tags=[disk.tag], path=disk.device_name, serial=disk.volume_id)
