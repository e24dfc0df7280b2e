# SPDX-License-Identifier: Apache-2.0
import pytest

from novadocker.virt.docker.images.platforms import host_platform


@pytest.mark.parametrize(
    ("variant", "rank"), [("", 0), ("v8", 0), ("8", 0), ("v8.2", 1), ("v9", 1)]
)
def test_variants_of_arm64(variant: str, rank: int) -> None:
    assert host_platform("arm64", ()).rank(variant) == rank


@pytest.mark.parametrize(("variant", "rank"), [("", 0), ("v1", 0), ("v2", None), ("8", None)])
def test_variants_of_amd64(variant: str, rank: int | None) -> None:
    assert host_platform("amd64", ()).rank(variant) == rank
