# SPDX-License-Identifier: Apache-2.0
"""Device tags as the guest reads them from the metadata service."""

from typing import Any

import pytest
from nova import objects
from nova.api.metadata import base

from novadocker.virt.docker.network import device_tags


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, instance: objects.Instance, network_info: Any) -> Any:
    """Return Nova's metadata of the instance's devices, with a port's and a disk's tag."""

    def show(port_tag: str | None, disk_tag: str | None) -> list[dict[str, Any]]:
        vifs = [objects.VirtualInterface(uuid=network_info[0]["id"], tag=port_tag)]
        disks = [
            objects.BlockDeviceMapping(
                boot_index=0, tag=disk_tag, source_type="image", destination_type="local"
            ),
            objects.BlockDeviceMapping(
                boot_index=None, tag="swap", source_type="blank", destination_type="local"
            ),
            objects.BlockDeviceMapping(
                boot_index=None,
                tag=disk_tag,
                source_type="volume",
                destination_type="volume",
                device_name="/dev/vdb",
                volume_id="7e570000-0000-4000-8000-0000000000b1",
            ),
        ]
        for kind, found in (("VirtualInterfaceList", vifs), ("BlockDeviceMappingList", disks)):
            monkeypatch.setattr(
                getattr(objects, kind), "get_by_instance_uuid", lambda *_, found=found: found
            )
        metadata = base.InstanceMetadata.__new__(base.InstanceMetadata)
        metadata.instance = instance
        instance.device_metadata = device_tags.device_metadata(None, instance, network_info)
        return list(metadata._get_device_metadata(base.OPENSTACK_VERSIONS[-1]))

    return show


def tagged(entries: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(entry["type"], entry.get("mac"), entry["tags"]) for entry in entries]


def test_tags_are_shown(shown: Any) -> None:
    found = shown("front", "system")
    assert tagged(found) == [
        ("nic", "fa:16:3e:00:00:05", ["front"]),
        ("disk", None, ["system"]),
        ("disk", None, ["system"]),
    ]
    assert found[-1]["path"] == "/dev/vdb"
    assert found[-1]["serial"] == "7e570000-0000-4000-8000-0000000000b1"


def test_what_has_no_tag_is_not_shown(shown: Any) -> None:
    assert shown(None, None) == []
