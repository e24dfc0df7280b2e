# SPDX-License-Identifier: Apache-2.0
"""Sizes of disks, on a separate engine with the storage driver btrfs."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from novadocker import exception
from novadocker.privsep.storage import btrfs
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.host import filesystem
from novadocker.virt.docker.limits import disk as limits_disk
from tests.engine import machines
from tests.engine.engines import own_engine
from tests.engine.machines import Machine

MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture(scope="module")
def url(own_network: None, state_folder: Path) -> Iterator[str]:
    """Yield the URL of an engine whose data root is a btrfs in a file."""
    if "btrfs" not in Path("/proc/filesystems").read_text() or not shutil.which("mkfs.btrfs"):
        pytest.skip("this machine has no btrfs")
    with own_engine(state_folder / "btrfs", "btrfs", "btrfs") as engine:
        yield engine.url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[docker.APIClient]:
    with machines.connected(url) as found:
        yield found


@pytest.fixture(scope="module")
def engine(url: str) -> Engine:
    return Engine(url, timeout=30, load_timeout=60)


@pytest.fixture
def sized(engine: Engine, client: docker.APIClient) -> Iterator[Machine]:
    counted(engine)
    limits = replace(machines.LIMITS, disk_bytes=SIZE)
    with machines.machine(engine, client, limits=limits) as found:
        yield found


def counted(engine: Engine) -> None:
    """Wait until the kernel has cleaned deleted subvolumes; rescan quotas as the driver does."""
    info = engine.info()
    subprocess.run(["btrfs", "filesystem", "sync", info.data_root], check=True)
    subprocess.run(
        ["btrfs", "subvolume", "sync", info.data_root], check=True, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while limits_disk.quotas_are_inconsistent(info):
        limits_disk.restore_quotas(info)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def fill(machine: Machine) -> int:
    """Write until the disk is full; return the MiB that were written."""
    code, output = machine.shell("rm -f /x; sync; dd if=/dev/zero of=/x bs=1M count=500 2>&1")
    assert code == 1, output
    assert "quota exceeded" in output
    return int(machine.shell("wc -c < /x")[1]) // MIB


def test_the_engine_can(engine: Engine) -> None:
    info = engine.info()
    assert filesystem.can_size_disks(info)
    assert limits_disk.can_resize(info)


def test_a_server_can_not_write_more_than_its_disk(engine: Engine, sized: Machine) -> None:
    assert 40 < fill(sized) < 64
    disk = limits_disk.read_disk(engine.info().data_root, sized.id)
    assert disk.size == SIZE
    assert SIZE - 2 * MIB < disk.used <= SIZE


def test_growing_while_it_runs(engine: Engine, sized: Machine) -> None:
    root = engine.info().data_root
    before = fill(sized)
    btrfs.resize_disk(root, sized.id, SIZE + 32 * MIB)
    assert limits_disk.read_disk(root, sized.id).size == SIZE + 32 * MIB
    assert 28 <= fill(sized) - before <= 36


def test_the_new_size_outlives_a_restart(
    engine: Engine, client: docker.APIClient, sized: Machine
) -> None:
    root = engine.info().data_root
    btrfs.resize_disk(root, sized.id, 2 * SIZE)
    client.restart(sized.id, timeout=0)
    assert limits_disk.read_disk(root, sized.id).size == 2 * SIZE


def test_disks_stay_limited_after_a_deletion(
    engine: Engine, client: docker.APIClient, sized: Machine
) -> None:
    limits = replace(machines.LIMITS, disk_bytes=SIZE)
    with machines.machine(engine, client, limits=limits):
        pass
    counted(engine)
    assert fill(sized) < 64


def test_without_a_size(engine: Engine, client: docker.APIClient) -> None:
    with machines.machine(engine, client) as found:
        assert limits_disk.read_disk(engine.info().data_root, found.id).size == 0


def test_an_engine_that_can_not_refuses(
    engine_url: str, docker_client: docker.APIClient, busybox_image: str
) -> None:
    """The driver requests no size from such an engine, because the whole boot would fail."""
    engine = Engine(engine_url, timeout=30, load_timeout=60)
    assert not filesystem.can_size_disks(engine.info())
    limits = replace(machines.LIMITS, disk_bytes=SIZE)
    with (
        pytest.raises(exception.EngineError, match="storage-opt"),
        machines.machine(engine, docker_client, busybox_image, limits=limits),
    ):
        pass


def test_no_such_container(engine: Engine) -> None:
    with pytest.raises(FileNotFoundError):
        limits_disk.read_disk(engine.info().data_root, "0" * 64)
