# SPDX-License-Identifier: Apache-2.0
"""Comparison of a running container's control groups with its limits, on cgroup v1 and v2.

Needs no privilege. The files are described in the kernel's Documentation/admin-guide/cgroup-v1 and
cgroup-v2.rst. ``novadocker.privsep.guest.cgroup`` writes the limits that the engine does not set.
"""

import math
from dataclasses import replace

from novadocker.linux.cgroup import Groups, parse_number_list
from novadocker.virt.docker.model import Limits

# -- limits that the engine sets ----------------------------------------------------------------


def with_cpuset(found: Groups, limits: Limits) -> Limits:
    """Return limits that name CPUs and NUMA nodes: the parent group's if the limits name none.

    Because an update of the engine with no CPUs changes nothing, "all CPUs" must be named.
    """

    def of_parent(file: str) -> frozenset[int]:
        effective = file + ".effective" if found.version == 2 else _effective(file)
        return parse_number_list(found.read_parent("cpuset", effective) or "")

    return replace(
        limits,
        cpuset_cpus=limits.cpuset_cpus or of_parent("cpuset.cpus"),
        cpuset_mems=limits.cpuset_mems or of_parent("cpuset.mems"),
    )


def _effective(file: str) -> str:
    return file.replace("cpuset.", "cpuset.effective_")


def differences(found: Groups, limits: Limits) -> dict[str, str]:
    """Return the content of each file that does not match the limits, by name of the file.

    Does not compare disk rates (see ``read_disk_rates``), nor swap if the kernel does not count it.

    :param limits: as ``with_cpuset`` returns them
    """
    wrong = {}
    wanted = _version_1(limits) if found.version == 1 else _version_2(limits)
    for (controller, file), accepted in wanted.items():
        value = found.read(controller, file)
        if value not in accepted and not (value is None and "sw" in file):
            wrong[file] = value or "nothing"
    for file, chosen in (("cpuset.cpus", limits.cpuset_cpus), ("cpuset.mems", limits.cpuset_mems)):
        effective = file + ".effective" if found.version == 2 else file
        value = found.read("cpuset", effective)
        if chosen and parse_number_list(value or "") != chosen:
            wrong[effective] = value or "nothing"
    return wrong


def _version_1(limits: Limits) -> dict[tuple[str, str], tuple[str, ...]]:
    return {
        ("cpu", "cpu.shares"): (str(limits.cpu_shares),),
        ("cpu", "cpu.cfs_period_us"): (str(limits.cpu_period_us),),
        ("cpu", "cpu.cfs_quota_us"): (str(limits.cpu_quota_us or -1),),
        ("memory", "memory.limit_in_bytes"): (str(limits.memory_bytes),),
        ("memory", "memory.memsw.limit_in_bytes"): (str(limits.memory_bytes + limits.swap_bytes),),
        ("pids", "pids.max"): (str(limits.pids),),
    }


def _version_2(limits: Limits) -> dict[tuple[str, str], tuple[str, ...]]:
    return {
        ("cpu", "cpu.weight"): tuple(map(str, weights(limits.cpu_shares))),
        ("cpu", "cpu.max"): (f"{limits.cpu_quota_us or 'max'} {limits.cpu_period_us}",),
        ("memory", "memory.max"): (str(limits.memory_bytes),),
        ("memory", "memory.swap.max"): (str(limits.swap_bytes),),
        ("pids", "pids.max"): (str(limits.pids),),
    }


def weights(shares: int) -> tuple[int, int]:
    """Return the ``cpu.weight`` that runc sets for shares: until release 1.3.1, and since then.

    Older releases map 2..262144 to 1..10000 linearly, so that the 1024 of one CPU become 39. Newer
    releases map 1024 to 100, the kernel's default weight.
    """
    exponent = (math.log2(shares) ** 2 + 125 * math.log2(shares)) / 612 - 7 / 34
    newer = 1 if shares <= 2 else 10_000 if shares >= 262_144 else math.ceil(10**exponent)
    return 1 + (shares - 2) * 9999 // 262_142, newer


# -- memory ---------------------------------------------------------------------------------------


def memory_in_use(found: Groups) -> int:
    """Return the bytes of memory that the kernel can't reclaim: all but the cache of files.

    :raises OSError: the kernel does not provide the values
    """
    file = "memory.usage_in_bytes" if found.version == 1 else "memory.current"
    used = found.read("memory", file)
    statistics = found.read("memory", "memory.stat")
    if used is None or statistics is None:
        raise FileNotFoundError(f"the kernel does not provide {file} and memory.stat")
    prefix = "total_" if found.version == 1 else ""
    counts = dict(line.split() for line in statistics.split("\n"))
    cached = ("inactive_file", "active_file", "slab_reclaimable")
    return max(0, int(used) - sum(int(counts.get(prefix + name, 0)) for name in cached))
