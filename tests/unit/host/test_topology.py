# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import pytest

from novadocker import exception
from novadocker.virt.docker.host import topology, traits
from novadocker.virt.docker.host.topology import Cell, CpuSets
from tests.unit import fakes


def make_host(root: Path, nodes: dict[int, str], cores: list[str], online: str) -> Path:
    """Create a tree like /sys/devices/system: the CPUs of each node, the threads of each core."""
    for cpu, siblings in ((int(cpu), core) for core in cores for cpu in core.split(",")):
        folder = root / "cpu" / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
        (folder / "physical_package_id").write_text("0\n")
    (root / "cpu" / "online").write_text(f"{online}\n")
    for node, cpus in nodes.items():
        folder = root / "node" / f"node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{cpus}\n")
        (folder / "meminfo").write_text(f"Node {node} MemTotal:       {1000 + node} kB\n")
    return root


def cores(*found: set[int]) -> frozenset[frozenset[int]]:
    return frozenset(frozenset(core) for core in found)


def test_two_nodes_with_threads(tmp_path: Path) -> None:
    root = make_host(tmp_path, {0: "0-1,4-5", 1: "2-3"}, ["0,4", "1,5", "2", "3"], "0-5")
    assert topology.read_cells(root) == (
        Cell(0, cores({0, 4}, {1, 5}), frozenset([0]), 1000),
        Cell(1, cores({2}, {3}), frozenset([0]), 1001),
    )


def test_what_is_offline_is_left_out(tmp_path: Path) -> None:
    # The last node has memory only.
    root = make_host(tmp_path, {0: "0-1", 1: "2-3", 2: ""}, ["0,1", "2,3"], "0")
    assert topology.read_cells(root) == (Cell(0, cores({0}), frozenset([0]), 1000),)


def test_kernel_without_nodes(tmp_path: Path) -> None:
    (cell,) = topology.read_cells(make_host(tmp_path, {}, ["0", "1"], "0-1"))
    assert (cell.id, cell.cpus) == (0, {0, 1})
    assert cell.memory_kb > 0


def test_this_machine() -> None:
    assert topology.read_cells()[0].cpus


@pytest.mark.parametrize(
    ("shared", "dedicated", "expected"),
    [
        (None, None, CpuSets(frozenset(range(8)), frozenset(), False)),
        ("0-2,^1", None, CpuSets(frozenset([0, 2]), frozenset(), True)),
        (None, "1-7", CpuSets(frozenset(), frozenset(range(1, 8)), True)),
        ("0", "1-7", CpuSets(frozenset([0]), frozenset(range(1, 8)), True)),
    ],
)
def test_cpu_sets(options: Any, shared: Any, dedicated: Any, expected: CpuSets) -> None:
    options("compute", cpu_shared_set=shared, cpu_dedicated_set=dedicated)
    assert topology.cpu_sets(fakes.CELLS) == expected


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cpu_shared_set": "0-8"}, r"cpu_shared_set names CPUs that are not online: \[8\]"),
        ({"cpu_dedicated_set": "9"}, "cpu_dedicated_set names"),
        ({"cpu_shared_set": "0-3", "cpu_dedicated_set": "3-7"}, r"both name the CPUs \[3\]"),
        ({"cpu_shared_set": "^1"}, "No CPUs available"),
    ],
)
def test_wrong_cpu_sets(options: Any, values: dict[str, str], words: str) -> None:
    options("compute", **values)
    with pytest.raises(exception.InvalidConfiguration, match=words):
        topology.cpu_sets(fakes.CELLS)


def test_old_option_is_refused(options: Any) -> None:
    options(vcpu_pin_set="0-1")
    with pytest.raises(exception.InvalidConfiguration, match="vcpu_pin_set"):
        topology.cpu_sets(fakes.CELLS)


def test_numa_topology() -> None:
    cells = [Cell(3, cores({0, 2}, {1, 3}), frozenset([5]), 4096)]
    (found,) = topology.numa_topology(cells, CpuSets(frozenset([0]), frozenset([1, 3]), True)).cells
    assert (found.id, found.cpuset, found.pcpuset, found.memory) == (3, {0}, {1, 3}, 4)
    assert found.siblings == [{0}, {1, 3}]
    assert found.socket == 5
    assert [(page.size_kb, page.total) for page in found.mempages] == [(4, 1024)]


def test_traits() -> None:
    flags = ["sse4_1", "pni", "avx2", "sha_ni", "vmx", "svm", "hypervisor", "aes"]
    found = traits.traits("x86_64", flags, fakes.CELLS, False, True)
    assert found == {
        "CUSTOM_HYPERVISOR_DOCKER": True,
        "CUSTOM_DOCKER_DISK_QUOTA": False,
        "CUSTOM_DOCKER_USER_NAMESPACE": True,
        "HW_CPU_HYPERTHREADING": False,
        "HW_ARCH_X86_64": True,
        **dict.fromkeys(
            [f"HW_CPU_X86_{name}" for name in ("AESNI", "AVX2", "SHA", "SSE3", "SSE41")], True
        ),
    }
    threads = [Cell(0, cores({0, 1}), frozenset([0]), 1)]
    assert traits.traits("aarch64", [], threads, True, False) == {
        "CUSTOM_HYPERVISOR_DOCKER": True,
        "CUSTOM_DOCKER_DISK_QUOTA": True,
        "CUSTOM_DOCKER_USER_NAMESPACE": False,
        "HW_CPU_HYPERTHREADING": True,
        "HW_ARCH_AARCH64": True,
    }
