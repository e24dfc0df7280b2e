# SPDX-License-Identifier: Apache-2.0
"""Names of the driver's objects on a host."""

import pytest

from novadocker import naming


@pytest.mark.parametrize(
    ("machine", "expected"),
    [("x86_64", "amd64"), ("aarch64", "arm64"), ("ppc64le", "ppc64le"), ("amd64", "amd64")],
)
def test_docker_architecture(machine: str, expected: str) -> None:
    assert naming.docker_architecture(machine) == expected


def test_an_image_name_has_the_id_and_the_tag() -> None:
    name = naming.image_name("7d1c", "0123456789ab")
    assert name == "novadocker/7d1c:0123456789ab"
    assert naming.split_image_name(name) == ("7d1c", "0123456789ab")


def test_device_names_fit_their_patterns() -> None:
    name = naming.host_device("0e6e0b4b-7a41-4f0b-9f1a-0f64e1f5a1c1")
    assert name == "nic0e6e0b4b-7a"
    assert naming.HOST_DEVICE.fullmatch(name)
    assert naming.GUEST_DEVICE.fullmatch(naming.guest_device(12))


def test_devices_of_os_vif() -> None:
    devices = naming.bridged_devices("0e6e0b4b-7a41-4f0b-9f1a-0f64e1f5a1c1")
    assert devices == ("qbr0e6e0b4b-7a", "qvb0e6e0b4b-7a", "qvo0e6e0b4b-7a")
    assert naming.BRIDGE.fullmatch(devices[0])
    assert list(map(naming.bridged_host_device, devices)) == [None, None, "tap0e6e0b4b-7a"]


@pytest.mark.parametrize("name", ["qvo", "qvox", "aqvo1", "tap0e6e0b4b-7a", "qvo0e6e0b4b-7a41"])
def test_other_devices(name: str) -> None:
    assert naming.bridged_host_device(name) is None
