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
