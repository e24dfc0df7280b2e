# SPDX-License-Identifier: Apache-2.0
"""The host: what it has, for Nova's resource tracker and Placement."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import os_resource_classes as orc
from nova import objects
from nova.objects import fields
from oslo_concurrency import processutils
from oslo_serialization import jsonutils
from oslo_utils import units, versionutils

from novadocker.virt.docker.host.topology import CpuSets
from novadocker.virt.docker.model import EngineInfo


@dataclass(frozen=True)
class Resources:
    """What a host has in all.

    :ivar vcpus: CPUs that servers share
    :ivar pcpus: CPUs that are each given to one server
    :ivar memory_mb: memory in MiB
    :ivar disk_gb: disk in GiB
    """

    vcpus: int
    pcpus: int
    memory_mb: int
    disk_gb: int
    disk_free_gb: int


Inventory = dict[str, dict[str, Any]]


def read_resources(info: EngineInfo, sets: CpuSets) -> Resources:
    """Return the host's resources; the disk is the one that holds the engine's data root."""
    disk = _statvfs(Path(info.data_root))
    return Resources(
        vcpus=len(sets.shared),
        pcpus=len(sets.dedicated),
        memory_mb=info.memory_bytes // units.Mi,
        disk_gb=disk.f_blocks * disk.f_frsize // units.Gi,
        disk_free_gb=disk.f_bavail * disk.f_frsize // units.Gi,
    )


def _statvfs(folder: Path) -> os.statvfs_result:
    """Return the figures of a folder's disk; by one above it, where nova-compute may not look.

    An engine that remaps users keeps its data a level deeper, in a folder closed to others.
    """
    try:
        return os.statvfs(folder)
    except PermissionError:
        return os.statvfs(folder.parent)


def architecture(info: EngineInfo) -> str:
    """Return Nova's name for the host's architecture."""
    return str(fields.Architecture.canonicalize(info.architecture))


def available_resource(
    nodename: str, info: EngineInfo, resources: Resources, topology: objects.NUMATopology
) -> dict[str, object]:
    """Return what ``ComputeDriver.get_available_resource`` promises.

    Usage is left at 0: the resource tracker computes it from its own claims.
    """
    cpu_info = {"arch": architecture(info), "topology": {"cpus": info.cpus}}
    return {
        "vcpus": resources.vcpus,
        "memory_mb": resources.memory_mb,
        "local_gb": resources.disk_gb,
        "vcpus_used": 0,
        "memory_mb_used": 0,
        "local_gb_used": 0,
        "disk_available_least": resources.disk_free_gb,
        "hypervisor_type": fields.HVType.DOCKER,
        "hypervisor_version": _version_number(info.version),
        "hypervisor_hostname": nodename,
        "cpu_info": jsonutils.dumps(cpu_info),
        "supported_instances": [
            (architecture(info), fields.HVType.DOCKER, fields.VMMode.EXE),
        ],
        "numa_topology": topology._to_json(),
    }


def read_cpu_features() -> list[str]:
    """Return the words by which the kernel tells what the CPUs can do; none but on x86."""
    found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1].split() if found else []


def _version_number(version: str) -> int:
    """Return a release as Nova's number: distributions append their own words to the engine's."""
    release = re.match(r"[0-9.]*[0-9]", version)
    return int(versionutils.convert_version_to_int(release.group())) if release else 0


def read_uptime() -> str:
    """Return the host's uptime as ``uptime(1)`` prints it, the form that Nova's API parses."""
    output, _ = processutils.execute("env", "LANG=C", "uptime")
    return str(output)


def inventory(
    resources: Resources, ratios: Mapping[str, float], reserved: Mapping[str, int]
) -> Inventory:
    """Return the inventories of a host.

    :param ratios: allocation ratio by resource class
    :param reserved: units kept for the host itself, by resource class
    """
    totals = {
        orc.VCPU: resources.vcpus,
        orc.PCPU: resources.pcpus,
        orc.MEMORY_MB: resources.memory_mb,
        orc.DISK_GB: resources.disk_gb,
    }
    return {
        resource: {
            "total": total,
            "min_unit": 1,
            "max_unit": total,
            "step_size": 1,
            # a CPU of a server's own is never shared
            "allocation_ratio": 1.0 if resource == orc.PCPU else ratios[resource],
            "reserved": min(reserved.get(resource, 0), total),
        }
        for resource, total in totals.items()
        # Placement knows no inventory of nothing
        if total
    }


def quiesced(known: Inventory) -> Inventory:
    """Return inventories of the same size with nothing left to claim.

    A host whose engine is away must attract no server, nor may it look empty: totals of zero
    would make Placement refuse to keep the allocations that exist.
    """
    return {resource: {**row, "reserved": row["total"]} for resource, row in known.items()}
