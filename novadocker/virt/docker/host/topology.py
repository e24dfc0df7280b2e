# SPDX-License-Identifier: Apache-2.0
"""The host's CPUs and NUMA nodes, and which of them Nova may assign to instances.

``[compute] cpu_shared_set`` and ``cpu_dedicated_set`` have the meaning that they have for Nova's
libvirt driver.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nova import exception as nova_exception
from nova import objects
from nova.virt import hardware
from oslo_utils import units

from novadocker import exception
from novadocker.conf import CONF

SYSFS = Path("/sys/devices/system")


@dataclass(frozen=True)
class Cell:
    """A NUMA node.

    :ivar cores: its online CPUs, as a set of threads for each core
    :ivar memory_kb: its memory in KiB
    """

    id: int
    cores: frozenset[frozenset[int]]
    sockets: frozenset[int]
    memory_kb: int

    @property
    def cpus(self) -> frozenset[int]:
        """All CPUs of the node."""
        return frozenset().union(*self.cores)


@dataclass(frozen=True)
class CpuSets:
    """The use of the host's CPUs.

    :ivar shared: CPUs of instances without dedicated CPUs
    :ivar dedicated: CPUs of which each is dedicated to one instance at a time
    :ivar divided: True if the operator set either option; otherwise instances without dedicated
        CPUs run on all CPUs
    """

    shared: frozenset[int]
    dedicated: frozenset[int]
    divided: bool


def read_cells(sysfs: Path = SYSFS) -> tuple[Cell, ...]:
    """Return the host's NUMA nodes that have CPUs.

    Returns one node with all CPUs and memory if the kernel has no support for NUMA.
    """
    online = _cpu_list(sysfs / "cpu" / "online")
    nodes = sorted((sysfs / "node").glob("node[0-9]*"), key=lambda path: int(path.name[4:]))
    found = {int(node.name[4:]): (_cpu_list(node / "cpulist"), node / "meminfo") for node in nodes}
    if not found:
        found = {0: (online, Path("/proc/meminfo"))}
    return tuple(
        _cell(sysfs, number, cpus & online, meminfo)
        for number, (cpus, meminfo) in found.items()
        if cpus & online
    )


def _cell(sysfs: Path, number: int, cpus: frozenset[int], meminfo: Path) -> Cell:
    threads = {cpu: sysfs / "cpu" / f"cpu{cpu}" / "topology" for cpu in cpus}
    total = re.search(r"MemTotal:\s+([0-9]+) kB", meminfo.read_text())
    if total is None:
        raise exception.InvalidConfiguration(reason=f"{meminfo} has no MemTotal")
    return Cell(
        id=number,
        cores=frozenset(
            _cpu_list(path / "thread_siblings_list") & cpus for path in threads.values()
        ),
        sockets=frozenset(
            int((path / "physical_package_id").read_text()) for path in threads.values()
        ),
        memory_kb=int(total[1]),
    )


def _cpu_list(path: Path) -> frozenset[int]:
    text = path.read_text().strip()
    return frozenset(hardware.parse_cpu_spec(text)) if text else frozenset()


def cpu_sets(cells: Iterable[Cell]) -> CpuSets:
    """Return the use of the host's CPUs according to Nova's options.

    :raises InvalidConfiguration: an option is malformed or names a CPU that is not online, or both
        options name the same CPU
    """
    online = frozenset().union(*(cell.cpus for cell in cells))
    try:
        shared = frozenset(hardware.get_cpu_shared_set() or ())
        dedicated = frozenset(hardware.get_cpu_dedicated_set() or ())
    except nova_exception.Invalid as error:
        raise exception.InvalidConfiguration(reason=error.format_message()) from error
    if CONF.vcpu_pin_set:
        raise exception.InvalidConfiguration(
            reason="vcpu_pin_set is not supported; use [compute] cpu_shared_set"
        )
    for name, cpus in (("cpu_shared_set", shared), ("cpu_dedicated_set", dedicated)):
        if cpus - online:
            raise exception.InvalidConfiguration(
                reason=f"[compute] {name} names CPUs that are not online: {sorted(cpus - online)}"
            )
    if shared & dedicated:
        raise exception.InvalidConfiguration(
            reason="[compute] cpu_shared_set and cpu_dedicated_set both name the CPUs "
            f"{sorted(shared & dedicated)}"
        )
    divided = bool(shared or dedicated)
    return CpuSets(shared if divided else online, dedicated, divided)


def numa_topology(cells: Iterable[Cell], sets: CpuSets) -> objects.NUMATopology:
    """Return the topology for Nova's placement by ``hw:cpu_policy`` and ``hw:numa_nodes``.

    It has no large pages, because a container cannot have dedicated ones.
    """
    return objects.NUMATopology(cells=[_numa_cell(cell, sets) for cell in cells])


def _numa_cell(cell: Cell, sets: CpuSets) -> objects.NUMACell:
    usable = cell.cpus & (sets.shared | sets.dedicated)
    page_kb = mmap.PAGESIZE // units.Ki
    return objects.NUMACell(
        id=cell.id,
        socket=min(cell.sockets) if len(cell.sockets) == 1 else None,
        cpuset=set(cell.cpus & sets.shared),
        pcpuset=set(cell.cpus & sets.dedicated),
        memory=cell.memory_kb // units.Ki,
        cpu_usage=0,
        memory_usage=0,
        pinned_cpus=set(),
        siblings=[set(core & usable) for core in sorted(cell.cores, key=min) if core & usable],
        mempages=[
            objects.NUMAPagesTopology(
                size_kb=page_kb, total=cell.memory_kb // page_kb, used=0, reserved=0
            )
        ],
        network_metadata=objects.NetworkMetadata(physnets=set(), tunneled=False),
    )
