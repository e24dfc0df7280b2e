# SPDX-License-Identifier: Apache-2.0
"""Sizes of disks with overlay2 on an XFS with project quota, which only some kernels have."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.host import filesystem
from novadocker.virt.docker.limits import disk
from tests.engine import engines, machines

MIB = 1 << 20


pytestmark = pytest.mark.skipif(
    not Path("/proc/fs/xfs/xqm").exists(), reason="this kernel's XFS has no project quota"
)


@pytest.fixture(scope="module")
def url(own_network: None, state_folder: Path) -> Iterator[str]:
    """Yield the URL of an engine on XFS."""
    with engines.own_engine(state_folder / "xfs", "overlay2", "xfs") as engine:
        yield engine.url


def test_a_server_can_not_write_more_than_its_disk(url: str) -> None:
    engine = Engine(url, timeout=60, load_timeout=60)
    info = engine.info()
    assert filesystem.can_size_disks(info)
    # The engine has no request for a resize, and only the engine knows the quota's project id.
    assert not disk.can_resize(info)
    limits = replace(machines.LIMITS, disk_bytes=48 * MIB)
    with (
        machines.connected(url) as client,
        machines.machine(engine, client, limits=limits) as found,
    ):
        code, output = found.shell("dd if=/dev/zero of=/x bs=1M count=100 2>&1")
        assert code == 1, output
        assert 40 < int(found.shell("wc -c < /x")[1]) // MIB <= 48
