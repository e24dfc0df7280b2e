# SPDX-License-Identifier: Apache-2.0
"""Paths and values of control groups, in trees of files like the kernel's."""

from dataclasses import replace
from pathlib import Path

import pytest

from novadocker.linux import cgroup as linux_cgroup
from novadocker.linux.cgroup import DiskRates
from novadocker.privsep.guest import cgroup as guest_cgroup
from novadocker.virt.docker.limits import cgroup
from novadocker.virt.docker.model import Limits

ID = "5e" * 32
MIB = 1 << 20
LIMITS = Limits(
    cpu_shares=1024,
    memory_bytes=256 * MIB,
    swap_bytes=64 * MIB,
    pids=100,
    cpu_quota_us=150_000,
    cpuset_cpus=frozenset({0, 1, 3}),
    cpuset_mems=frozenset({0}),
)
RATES = DiskRates(read_bytes=5 * MIB, write_iops=100)

VERSION_1 = {
    "cpu/docker/ID/cpu.shares": "1024",
    "cpu/docker/ID/cpu.cfs_period_us": "100000",
    "cpu/docker/ID/cpu.cfs_quota_us": "150000",
    "cpuset/docker/ID/cpuset.cpus": "0-1,3",
    "cpuset/docker/ID/cpuset.mems": "0",
    "cpuset/docker/cpuset.effective_cpus": "0-7",
    "cpuset/docker/cpuset.effective_mems": "0-1",
    "memory/docker/ID/memory.limit_in_bytes": str(256 * MIB),
    "memory/docker/ID/memory.memsw.limit_in_bytes": str(320 * MIB),
    "memory/docker/ID/memory.usage_in_bytes": str(100 * MIB),
    "memory/docker/ID/memory.stat": f"total_inactive_file {30 * MIB}\ntotal_active_file {10 * MIB}",
    "pids/docker/ID/pids.max": "100",
    "blkio/docker/ID/blkio.throttle.read_bps_device": f"7:0 1\n254:0 {5 * MIB}",
    "blkio/docker/ID/blkio.throttle.write_iops_device": "254:0 100",
}
GROUPS_1 = """\
12:cpuset:/docker/ID
11:blkio:/docker/ID
10:pids:/docker/ID
9:memory:/docker/ID
8:cpu:/docker/ID
1:name=systemd:/docker/ID
0::/docker/ID
"""
VERSION_2 = {
    "PARENT/GROUP/cpu.weight": "39",
    "PARENT/GROUP/cpu.max": "150000 100000",
    "PARENT/GROUP/cpuset.cpus.effective": "0-1,3",
    "PARENT/GROUP/cpuset.mems.effective": "0",
    "PARENT/cpuset.cpus.effective": "0-7",
    "PARENT/cpuset.mems.effective": "0-1",
    "PARENT/GROUP/memory.max": str(256 * MIB),
    "PARENT/GROUP/memory.swap.max": str(64 * MIB),
    "PARENT/GROUP/memory.current": str(100 * MIB),
    "PARENT/GROUP/memory.stat": f"inactive_file {30 * MIB}\nactive_file 0\n"
    f"slab_reclaimable {10 * MIB}",
    "PARENT/GROUP/pids.max": "100",
    "PARENT/GROUP/io.max": f"8:0 rbps=1 wbps=1 riops=1 wiops=1\n"
    f"254:0 rbps={5 * MIB} wbps=max riops=max wiops=100",
}
# By the creator of the group: the process's path, the parent group, the container's group.
LAYOUTS = {
    "cgroupfs": ("/docker/ID", "docker", "ID"),
    "systemd": ("/system.slice/docker-ID.scope", "system.slice", "docker-ID.scope"),
    "systemd inside": (
        "/system.slice/docker-ID.scope/init.scope",
        "system.slice",
        "docker-ID.scope",
    ),
}


def build(root: Path, groups: str, files: dict[str, str]) -> linux_cgroup.Groups:
    path = root / "proc/7/cgroup"
    path.parent.mkdir(parents=True)
    path.write_text(groups.replace("ID", ID))
    for name, content in files.items():
        file = root / "sys/fs/cgroup" / name.replace("ID", ID)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")
    return linux_cgroup.groups(7, ID, root)


def version_2(root: Path, layout: str = "cgroupfs", **changes: str) -> linux_cgroup.Groups:
    path, parent, group = LAYOUTS[layout]
    files = {"cgroup.controllers": "cpuset cpu io memory pids"} | {
        name.replace("PARENT", parent).replace("GROUP", group): changes.get(
            name.rpartition("/")[2].replace(".", "_"), content
        )
        for name, content in VERSION_2.items()
    }
    return build(root, f"0::{path}\n", files)


def both(root: Path) -> list[linux_cgroup.Groups]:
    return [build(root / "1", GROUPS_1, VERSION_1), version_2(root / "2")]


def test_versions(tmp_path: Path) -> None:
    assert [found.version for found in both(tmp_path)] == [1, 2]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    assert cgroup.differences(version_2(tmp_path, layout), LIMITS) == {}


@pytest.mark.parametrize("groups", ["0::/docker/other\n", "9:memory:/docker/other\n0::/\n"])
def test_a_process_of_another(tmp_path: Path, groups: str) -> None:
    with pytest.raises(ProcessLookupError):
        build(tmp_path, groups, {})


def test_a_process_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ProcessLookupError):
        linux_cgroup.groups(8, ID, tmp_path)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, (set(), set())),
        ({"cpu_shares": 512}, ({"cpu.shares"}, {"cpu.weight"})),
        ({"cpu_quota_us": 0}, ({"cpu.cfs_quota_us"}, {"cpu.max"})),
        ({"cpu_period_us": 50_000}, ({"cpu.cfs_period_us"}, {"cpu.max"})),
        ({"cpuset_cpus": frozenset({0})}, ({"cpuset.cpus"}, {"cpuset.cpus.effective"})),
        ({"cpuset_mems": frozenset({1})}, ({"cpuset.mems"}, {"cpuset.mems.effective"})),
        (
            {"memory_bytes": MIB},
            ({"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"}, {"memory.max"}),
        ),
        ({"swap_bytes": 0}, ({"memory.memsw.limit_in_bytes"}, {"memory.swap.max"})),
        ({"pids": 99}, ({"pids.max"}, {"pids.max"})),
    ],
)
def test_differences(
    tmp_path: Path, change: dict[str, int], wrong: tuple[set[str], set[str]]
) -> None:
    for found, names in zip(both(tmp_path), wrong, strict=True):
        assert set(cgroup.differences(found, replace(LIMITS, **change))) == names  # type: ignore[arg-type]


def test_swap_that_is_not_counted_and_a_missing_file(tmp_path: Path) -> None:
    files = {name: text for name, text in VERSION_1.items() if "memsw" not in name}
    del files["pids/docker/ID/pids.max"]
    assert cgroup.differences(build(tmp_path, GROUPS_1, files), LIMITS) == {"pids.max": "nothing"}


def test_any_cpu_is_those_of_the_group_above(tmp_path: Path) -> None:
    free = replace(LIMITS, cpuset_cpus=frozenset(), cpuset_mems=frozenset())
    for found in both(tmp_path):
        named = cgroup.with_cpuset(found, free)
        assert named.cpuset_cpus == frozenset(range(8))
        assert named.cpuset_mems == {0, 1}
        assert cgroup.with_cpuset(found, LIMITS) == LIMITS


@pytest.mark.parametrize(
    ("shares", "weights"),
    [(2, (1, 1)), (1024, (39, 100)), (2048, (79, 174)), (262_144, (10_000, 10_000))],
)
def test_weights(shares: int, weights: tuple[int, int]) -> None:
    assert cgroup.weights(shares) == weights


@pytest.mark.parametrize(
    ("text", "expected"), [("", set()), ("0", {0}), ("0-2,5", {0, 1, 2, 5}), ("1,3", {1, 3})]
)
def test_number_lists(text: str, expected: set[int]) -> None:
    assert linux_cgroup.parse_number_list(text) == expected


def test_memory_in_use_leaves_out_what_can_be_taken_back(tmp_path: Path) -> None:
    assert [cgroup.memory_in_use(found) for found in both(tmp_path)] == [60 * MIB] * 2


def test_disk_rates_are_read(tmp_path: Path) -> None:
    for found in both(tmp_path):
        assert linux_cgroup.read_disk_rates(found, "254:0") == RATES
        assert linux_cgroup.read_disk_rates(found, "9:9") == DiskRates()


def test_disk_rates_are_written() -> None:
    assert guest_cgroup.disk_rate_writes(1, "254:0", RATES) == [
        ("blkio", "blkio.throttle.read_bps_device", f"254:0 {5 * MIB}"),
        ("blkio", "blkio.throttle.write_bps_device", "254:0 0"),
        ("blkio", "blkio.throttle.read_iops_device", "254:0 0"),
        ("blkio", "blkio.throttle.write_iops_device", "254:0 100"),
    ]
    assert guest_cgroup.disk_rate_writes(2, "254:0", RATES) == [
        ("io", "io.max", f"254:0 rbps={5 * MIB} wbps=max riops=max wiops=100")
    ]


def test_the_disk_of_no_device(tmp_path: Path) -> None:
    assert linux_cgroup.disk_of("overlay") is None
    assert linux_cgroup.disk_of(str(tmp_path)) is None
