# SPDX-License-Identifier: Apache-2.0
"""The recorded names of guest devices in Nova's database."""

from nova import objects
from nova.compute import utils as compute_utils
from nova.network import model as network_model

from novadocker.virt.docker.network import device_names


def test_a_snapshot_has_no_word_of_the_ports(
    instance: objects.Instance, network_info: network_model.NetworkInfo
) -> None:
    instance.system_metadata = {"image_os_admin_user": "debian"}
    device_names.record_names(instance, network_info)
    (port,) = network_info
    assert device_names.recorded_names(instance) == {port["id"]: "eth0"}
    snapshot = compute_utils.initialize_instance_snapshot_metadata(
        instance._context, instance, "snap"
    )
    assert snapshot["properties"].keys() - {"instance_owner"} == {"os_admin_user"}


def test_records_of_earlier_releases(
    instance: objects.Instance, network_info: network_model.NetworkInfo
) -> None:
    (port,) = network_info
    instance.system_metadata = {f"docker_nic_{port['id']}": "eth3", "docker_nic_gone": "eth0"}
    assert device_names.recorded_names(instance)[port["id"]] == "eth3"
    device_names.record_names(instance, network_info)
    assert list(instance.system_metadata.values()) == ["eth3"]
    assert not [name for name in instance.system_metadata if name.startswith("docker_nic_")]
