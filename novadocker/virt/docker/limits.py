# SPDX-License-Identifier: Apache-2.0
"""Flavor -> Limits; pure."""

from __future__ import annotations

from nova import objects
from oslo_utils import units

from novadocker.virt.docker.model import Limits

# the kernel's largest weight (cgroup v1 cpu.shares)
_MAX_CPU_SHARES = 262144


def limits_from_flavor(flavor: objects.Flavor, pids: int) -> Limits:
    """Return the limits of a server.

    A server gets the CPU time of as many CPUs as its flavor has, like a virtual machine, and a
    weight in proportion. Memory is the flavor's; so is swap, as an allowance on the host's.
    """
    return Limits(
        nano_cpus=flavor.vcpus * 1_000_000_000,
        cpu_shares=min(flavor.vcpus * 1024, _MAX_CPU_SHARES),
        memory_bytes=flavor.memory_mb * units.Mi,
        swap_bytes=flavor.swap * units.Mi,
        pids=pids,
    )
