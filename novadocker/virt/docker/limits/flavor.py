# SPDX-License-Identifier: Apache-2.0
"""Calculation of an instance's limits from its flavor, its image and Nova's CPU pinning; pure.

The extra specs are Nova's. They have the units and the meaning of the libvirt driver, so that a
flavor works for virtual machines and containers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from nova import exception as nova_exception
from nova import objects, utils
from nova.objects import fields
from nova.virt import hardware
from oslo_utils import units

from novadocker import exception, extra_specs
from novadocker.linux.cgroup import DiskRates
from novadocker.privsep.network.types import NetworkRate
from novadocker.virt.docker.host.topology import Cell, CpuSets
from novadocker.virt.docker.model import Limits

_DEDICATED = fields.CPUAllocationPolicy.DEDICATED
_MIXED = fields.CPUAllocationPolicy.MIXED

# The default of the kernel and of the libvirt driver.
_PERIOD_US = 100_000
# The kernel's bounds (sched/core.c), which are also libvirt's.
_PERIODS_US = (1_000, 1_000_000)
_LEAST_QUOTA_US = 1_000
# The kernel's bounds of cpu.shares (cgroup v1).
_SHARES = (2, 262_144)
_SHARES_OF_A_CPU = 1024
# Larger than the rate of any device; multiplied by a unit below, it fits 64 bits.
_MAX_RATE = 10**15
# libvirt's unit is kilobytes. tc(8), which it calls, uses 1000 for rates and 1024 for bursts.
_RATE_UNIT = 1000
_BURST_UNIT = 1024


@dataclass(frozen=True)
class Rules:
    """Rules of the host and its operator for the limits of all instances.

    :ivar pids: default limit of processes and threads
    :ivar shared_cpus: CPUs of instances without dedicated CPUs; None if the host has no such CPUs,
        empty if these instances may use all CPUs
    :ivar shared_cpus_of_cell: CPUs of instances without dedicated CPUs, by NUMA node
    :ivar sized_disks: True if the engine can limit the size of a disk
    :ivar image_may_ask: names of the extra specs of ``docker:`` that an image may set
    """

    pids: int
    shared_cpus: frozenset[int] | None
    shared_cpus_of_cell: Mapping[int, frozenset[int]]
    sized_disks: bool
    image_may_ask: Collection[str]


def rules(
    cells: Iterable[Cell],
    sets: CpuSets,
    *,
    pids: int,
    sized_disks: bool,
    image_may_ask: Collection[str],
) -> Rules:
    """Return the rules of a host with these NUMA nodes and sets of CPUs."""
    return Rules(
        pids=pids,
        shared_cpus=(sets.shared or None) if sets.divided else frozenset(),
        shared_cpus_of_cell={cell.id: cell.cpus & sets.shared for cell in cells},
        sized_disks=sized_disks,
        image_may_ask=image_may_ask,
    )


def instance_limits(instance: objects.Instance, rules: Rules) -> Limits:
    """Return the limits of an instance with its current flavor and CPUs.

    :raises InvalidLimits: see ``limits_for``
    """
    return limits_for(instance, instance.flavor, instance.numa_topology, rules)


def limits_for(
    instance: objects.Instance,
    flavor: objects.Flavor,
    numa_topology: objects.InstanceNUMATopology | None,
    rules: Rules,
) -> Limits:
    """Return the limits of an instance with a flavor and the NUMA topology that Nova chose.

    An instance gets the CPU time of as many CPUs as its flavor has, like a virtual machine, and
    CPU shares in proportion. Its swap is a limit of its use of the host's swap.

    :raises InvalidLimits: a requested limit is malformed, out of range, forbidden or unavailable on
        this host
    """
    specs = flavor.extra_specs or {}
    ours = asked(instance, flavor, rules)
    policy = hardware.get_cpu_policy_constraint(flavor, instance.image_meta)
    cpus, nodes = _cpuset(policy, numa_topology, rules)
    period = _period(specs)
    pids = ours.get(extra_specs.PIDS_LIMIT.name)
    return Limits(
        cpu_shares=_shares(specs, flavor.vcpus),
        memory_bytes=flavor.memory_mb * units.Mi,
        swap_bytes=flavor.swap * units.Mi,
        pids=extra_specs.PIDS_LIMIT.parse(pids) if pids else rules.pids,
        cpu_period_us=period,
        cpu_quota_us=_quota(specs, period, flavor.vcpus, policy == _DEDICATED),
        cpuset_cpus=cpus,
        cpuset_mems=nodes,
        disk_bytes=flavor.root_gb * units.Gi if rules.sized_disks else 0,
        disk=_disk_rates(specs),
        inbound=_network_rate(specs, "inbound"),
        outbound=_network_rate(specs, "outbound"),
    )


def asked(instance: objects.Instance, flavor: objects.Flavor, rules: Rules) -> dict[str, str]:
    """Return the validated extra specs of ``docker:`` of an instance's flavor and image.

    :raises InvalidLimits: an extra spec is malformed, or the image may not set it
    """
    image = {
        name.removeprefix(utils.SM_IMAGE_PROP_PREFIX): value
        for name, value in instance.system_metadata.items()
        if name.startswith(utils.SM_IMAGE_PROP_PREFIX)
    }
    try:
        return extra_specs.asked(flavor.extra_specs or {}, image, rules.image_may_ask)
    except ValueError as error:
        raise exception.InvalidLimits(reason=str(error)) from error


def check_image_fits(image_bytes: int, most: Limits) -> None:
    """Check that an image is smaller than the limit of the disk, if the disk has one.

    :raises FlavorDiskSmallerThanImage: the image is as large as the disk or larger
    """
    if most.disk_bytes and image_bytes >= most.disk_bytes:
        raise nova_exception.FlavorDiskSmallerThanImage(
            flavor_size=most.disk_bytes, image_size=image_bytes
        )


def _cpuset(
    policy: str | None, numa_topology: objects.InstanceNUMATopology | None, rules: Rules
) -> tuple[frozenset[int], frozenset[int]]:
    """Return the CPUs and NUMA nodes of an instance. Nova chooses dedicated CPUs."""
    cells = numa_topology.cells if numa_topology else ()
    pinned = {number for cell in cells for number in (cell.cpu_pinning or {}).values()}
    wanted = sum(len(cell.pcpuset) for cell in cells)
    if len(pinned) < wanted or (policy in (_DEDICATED, _MIXED) and not pinned):
        raise exception.InvalidLimits(reason="Nova chose no dedicated CPUs for the instance")
    if pinned and not any(cell.cpuset for cell in cells):
        shared: frozenset[int] = frozenset()
    elif rules.shared_cpus is None:
        raise exception.InvalidLimits(reason="all CPUs of this host are dedicated")
    elif cells:
        shared = frozenset().union(
            *(rules.shared_cpus_of_cell[cell.id] for cell in cells if cell.cpuset)
        )
    else:
        shared = rules.shared_cpus
    return frozenset(pinned) | shared, frozenset(cell.id for cell in cells)


def _shares(specs: Mapping[str, str], vcpus: int) -> int:
    least, most = _SHARES
    shares = _number(specs, "quota:cpu_shares")
    if not shares:
        return min(vcpus * _SHARES_OF_A_CPU, most)
    return _within("quota:cpu_shares", shares, least, most)


def _period(specs: Mapping[str, str]) -> int:
    period = _number(specs, "quota:cpu_period")
    return _within("quota:cpu_period", period, *_PERIODS_US) if period else _PERIOD_US


def _quota(specs: Mapping[str, str], period: int, vcpus: int, dedicated: bool) -> int:
    """Return the CPU time in a period in microseconds, on all CPUs together; 0 means no limit.

    The extra spec is the time of one virtual CPU. If it is negative or missing, a virtual CPU gets
    the time of one CPU. An instance with dedicated CPUs needs no limit then.
    """
    quota = _number(specs, "quota:cpu_quota")
    if 0 < quota < _LEAST_QUOTA_US:
        raise exception.InvalidLimits(
            reason=f"quota:cpu_quota: {quota} is less than {_LEAST_QUOTA_US}"
        )
    if quota <= 0 and dedicated:
        return 0
    return vcpus * (min(quota, period) if quota > 0 else period)


def _disk_rates(specs: Mapping[str, str]) -> DiskRates:
    """Return the disk's rates.

    A total becomes the rate of reads and of writes, because the kernel counts them separately.
    """
    rates = {}
    for unit in ("bytes", "iops"):
        total = _rate(specs, f"quota:disk_total_{unit}_sec")
        for direction in ("read", "write"):
            rate = _rate(specs, f"quota:disk_{direction}_{unit}_sec")
            if total and rate:
                # libvirt refuses this, too.
                raise exception.InvalidLimits(
                    reason=f"quota:disk_total_{unit}_sec excludes quota:disk_{direction}_{unit}_sec"
                )
            rates[f"{direction}_{unit}"] = total or rate
    return DiskRates(**rates)


def _network_rate(specs: Mapping[str, str], direction: str) -> NetworkRate | None:
    prefix = f"quota:vif_{direction}"
    average, peak, burst = (
        _rate(specs, f"{prefix}_{name}") for name in ("average", "peak", "burst")
    )
    if not average:
        if peak or burst:
            # libvirt refuses this, too.
            raise exception.InvalidLimits(reason=f"{prefix}_average is missing")
        return None
    if peak and peak < average:
        raise exception.InvalidLimits(reason=f"{prefix}_peak is below {prefix}_average")
    return NetworkRate(
        average=average * _RATE_UNIT, peak=peak * _RATE_UNIT, burst=burst * _BURST_UNIT
    )


def _rate(specs: Mapping[str, str], name: str) -> int:
    return _within(name, _number(specs, name), 0, _MAX_RATE)


def _number(specs: Mapping[str, str], name: str) -> int:
    """Return an extra spec as an int; 0 if the flavor does not have it."""
    text = specs.get(name, "0")
    try:
        return int(text)
    except ValueError as error:
        raise exception.InvalidLimits(
            reason=f"{name}: {text[:32]!r} is not a whole number"
        ) from error


def _within(name: str, number: int, least: int, most: int) -> int:
    if not least <= number <= most:
        raise exception.InvalidLimits(reason=f"{name}: {number} is not between {least} and {most}")
    return number
