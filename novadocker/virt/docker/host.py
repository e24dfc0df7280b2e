# SPDX-License-Identifier: Apache-2.0
"""The host: what it has, for Nova's resource tracker and Placement."""

import os
import re
from dataclasses import dataclass

from nova.objects import fields
from oslo_concurrency import processutils
from oslo_serialization import jsonutils
from oslo_utils import units, versionutils

from novadocker.virt.docker.model import EngineInfo

# marks hosts of this driver, for flavors that must land on one: trait:CUSTOM_HYPERVISOR_DOCKER
TRAIT = "CUSTOM_HYPERVISOR_DOCKER"


@dataclass(frozen=True)
class Resources:
    """What a host has in all: CPUs, MiB of memory, GiB of disk (and how many are free)."""

    cpus: int
    memory_mb: int
    disk_gb: int
    disk_free_gb: int


def read_resources(info: EngineInfo) -> Resources:
    """Return the host's resources; the disk is the one that holds the engine's data root."""
    disk = os.statvfs(info.data_root)
    return Resources(
        cpus=info.cpus,
        memory_mb=info.memory_bytes // units.Mi,
        disk_gb=disk.f_blocks * disk.f_frsize // units.Gi,
        disk_free_gb=disk.f_bavail * disk.f_frsize // units.Gi,
    )


def architecture(info: EngineInfo) -> str:
    """Return Nova's name for the host's architecture."""
    return str(fields.Architecture.canonicalize(info.architecture))


def available_resource(nodename: str, info: EngineInfo, resources: Resources) -> dict[str, object]:
    """Return what ``ComputeDriver.get_available_resource`` promises.

    Usage is left at 0: the resource tracker computes it from its own claims.
    """
    cpu_info = {"arch": architecture(info), "topology": {"cpus": info.cpus}}
    return {
        "vcpus": resources.cpus,
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
        "numa_topology": None,
    }


def _version_number(version: str) -> int:
    """Return a release as Nova's number: distributions append their own words to the engine's."""
    release = re.match(r"[0-9.]*[0-9]", version)
    return int(versionutils.convert_version_to_int(release.group())) if release else 0


def read_uptime() -> str:
    """Return the host's uptime as ``uptime(1)`` prints it, the form that Nova's API parses."""
    output, _ = processutils.execute("env", "LANG=C", "uptime")
    return str(output)
