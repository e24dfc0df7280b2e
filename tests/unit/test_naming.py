# SPDX-License-Identifier: Apache-2.0
import pytest

from novadocker import naming


@pytest.mark.parametrize(
    ("machine", "expected"),
    [("x86_64", "amd64"), ("aarch64", "arm64"), ("ppc64le", "ppc64le"), ("amd64", "amd64")],
)
def test_docker_architecture(machine: str, expected: str) -> None:
    assert naming.docker_architecture(machine) == expected
