# SPDX-License-Identifier: Apache-2.0
"""The host's resources and inventories for Nova's resource tracker and Placement."""

from __future__ import annotations

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

from novadocker.linux import space
from novadocker.virt.docker.host import filesystem
from novadocker.virt.docker.host.topology import CpuSets
from novadocker.virt.docker.model import EngineInfo


@dataclass(frozen=True)
class Resources:
    """The total resources of a host.

    :ivar vcpus: CPUs that instances share
    :ivar pcpus: CPUs of which each is dedicated to one instance
    :ivar memory_mb: memory in MiB
    :ivar disk_gb: size of the disk in GiB
    :ivar disk_free_gb: free space of the disk in GiB
    """

    vcpus: int
    pcpus: int
    memory_mb: int
    disk_gb: int
    disk_free_gb: int


Inventory = dict[str, dict[str, Any]]


def read_resources(info: EngineInfo, sets: CpuSets) -> Resources:
    """Return the host's resources. The disk is the file system of the containers' files."""
    disk = space.of_data_root(Path(filesystem.layers_root(info)))
    return Resources(
        vcpus=len(sets.shared),
        pcpus=len(sets.dedicated),
        memory_mb=info.memory_bytes // units.Mi,
        disk_gb=disk.f_blocks * disk.f_frsize // units.Gi,
        disk_free_gb=disk.f_bavail * disk.f_frsize // units.Gi,
    )


def architecture(info: EngineInfo) -> str:
    """Return Nova's name for the host's architecture."""
    return str(fields.Architecture.canonicalize(info.architecture))


def available_resource(
    nodename: str,
    info: EngineInfo,
    resources: Resources,
    topology: objects.NUMATopology,
    failed_builds: int,
) -> dict[str, object]:
    """Return the result of ``ComputeDriver.get_available_resource``.

    Usage is 0, because the resource tracker computes it from its own claims.

    :param failed_builds: replaces the resource tracker's own count
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
        # Because Nova's API shows no uptime of a host whose statistics lack it, it is among them.
        "stats": {"failed_builds": failed_builds, "uptime": read_uptime()},
    }


def read_cpu_features() -> list[str]:
    """Return the kernel's names of the CPUs' features; empty on other architectures than x86."""
    found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1].split() if found else []


def _version_number(version: str) -> int:
    """Return a release as Nova's number, without the suffix that distributions append to it."""
    release = re.match(r"[0-9.]*[0-9]", version)
    return int(versionutils.convert_version_to_int(release.group())) if release else 0


def read_uptime() -> str:
    """Return the host's uptime in the format of uptime(1), which Nova's API parses."""
    output, _ = processutils.execute("env", "LANG=C", "uptime")
    return str(output)


def inventory(
    resources: Resources, ratios: Mapping[str, float], reserved: Mapping[str, int]
) -> Inventory:
    """Return the inventories of a host.

    :param ratios: allocation ratio by resource class
    :param reserved: units that are reserved for the host itself, by resource class
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
            # Because dedicated CPUs are never shared, the operator's ratio does not apply.
            "allocation_ratio": 1.0 if resource == orc.PCPU else ratios[resource],
            "reserved": min(reserved.get(resource, 0), total),
        }
        for resource, total in totals.items()
        # Because Placement refuses an inventory with a total of 0, such a class is left out.
        if total
    }


def all_reserved(known: Inventory) -> Inventory:
    """Return inventories with the same totals, all of them reserved.

    So Placement selects no host whose engine does not answer. Totals of 0 cannot be used,
    because Placement refuses an inventory that is smaller than the existing allocations.
    """
    return {resource: {**row, "reserved": row["total"]} for resource, row in known.items()}
