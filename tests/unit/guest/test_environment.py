# SPDX-License-Identifier: Apache-2.0
"""Environment variables from the properties of an image and the metadata of a server."""

from typing import Any

import pytest

from novadocker import exception
from novadocker.virt.docker.guest import environment

OWN = {"product_name": "OpenStack Nova"}
LONGEST = "x" * 250


@pytest.mark.parametrize(
    ("image", "metadata", "allowed", "found"),
    [
        ({}, {}, True, {}),
        ({"image_docker_env_A": "1", "image_os_admin_user": "a"}, {}, False, {"A": "1"}),
        ({"image_docker_env__a9": LONGEST}, {}, False, {"_a9": LONGEST}),
        ({"docker_env_A": "1"}, {"role": "web"}, True, {}),
        (
            {"image_docker_env_A": "1"},
            {"docker_env_A": "2", "docker_env_B": ""},
            True,
            {"A": "2", "B": ""},
        ),
        ({"image_docker_env_A": "1"}, {"docker_env_A": "2"}, False, {"A": "1"}),
    ],
)
def test_variables(
    instance: Any,
    image: dict[str, str],
    metadata: dict[str, str],
    allowed: bool,
    found: dict[str, str],
) -> None:
    instance.system_metadata, instance.metadata = image, metadata
    assert environment.variables(instance, from_metadata=allowed) == {**found, **OWN}


WRONG = [
    ("", "1", "does not name"),
    ("1A", "1", "does not name"),
    ("A=B", "1", "does not name"),
    ("A\n", "1", "does not name"),
    ("Ä", "1", "does not name"),
    ("container", "lxc", "that the driver sets"),
    ("product_name", "KVM", "that the driver sets"),
    ("A", f"{LONGEST}x", "more than 250 bytes"),
    ("A", "ä" * 126, "more than 250 bytes"),
    ("A", "a\0b", "null character"),
]


@pytest.mark.parametrize(("name", "value", "reason"), WRONG)
def test_wrong_variable(instance: Any, name: str, value: str, reason: str) -> None:
    instance.metadata = {}
    instance.system_metadata = {f"image_docker_env_{name}": value}
    with pytest.raises(exception.InvalidImage, match=reason):
        environment.check(instance, "image", from_metadata=True)
    instance.system_metadata = {}
    instance.metadata = {f"docker_env_{name}": value}
    with pytest.raises(exception.StartFailed, match=reason):
        environment.check(instance, "image", from_metadata=True)
    # A tenant may add it to the metadata of a server that exists.
    assert environment.variables(instance, from_metadata=True) == OWN


def test_metadata_that_the_operator_does_not_allow(instance: Any) -> None:
    instance.metadata = {"docker_env_A": "1"}
    with pytest.raises(exception.StartFailed, match="docker_env_A is not allowed in this cloud"):
        environment.check(instance, "image", from_metadata=False)
    environment.check(instance, "image", from_metadata=True)
