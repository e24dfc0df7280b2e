# SPDX-License-Identifier: Apache-2.0
"""Bodies of requests to the Docker Engine, and conversion of parts of its responses; pure."""

from __future__ import annotations

import contextlib
import datetime
import io
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

from oslo_utils import timeutils

from novadocker import naming
from novadocker.extra_specs import Nesting
from novadocker.state_files import console_log
from novadocker.virt.docker.engine import seccomp
from novadocker.virt.docker.engine.masks import MASKED_PATHS
from novadocker.virt.docker.model import (
    ContainerSpec,
    Isolation,
    Limits,
    Overlay,
    Usage,
)

# The driver reads only files that it wrote to /etc, which are smaller.
_LARGEST_READ = 64 << 10

# Mounts of systemd, which it cannot create without CAP_SYS_ADMIN.
_SYSTEMD_TMPFS = {
    "/run": "rw,nosuid,nodev,exec,mode=755",
    "/run/lock": "rw,nosuid,nodev,noexec,mode=1777,size=5m",
}


def container_config(spec: ContainerSpec) -> dict[str, Any]:
    """Return the body of the request that creates the container."""
    config: dict[str, Any] = {
        "Image": spec.image_id,
        "Hostname": spec.hostname,
        "Labels": dict(spec.labels),
        "Env": [f"{name}={value}" for name, value in spec.environment.items()],
        # With a terminal, init systems and login prompts find a console, as in a virtual machine.
        "Tty": True,
        "OpenStdin": True,
        # No network of the engine, because the runtime shim joins the instance's namespace.
        "NetworkDisabled": True,
        "HostConfig": {
            "NetworkMode": "none",
            "Runtime": spec.runtime,
            "RestartPolicy": {"Name": "no"},
            **_resources(spec.limits),
            **_isolation(spec.isolation, spec.limits.memory_bytes),
            "Mounts": [
                *(
                    {
                        "Type": "bind",
                        "Source": m.source,
                        "Target": m.target,
                        "ReadOnly": not m.writable,
                    }
                    for m in spec.mounts
                ),
                *map(_overlay, spec.overlays),
            ],
            "Devices": [
                *(
                    {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rwm"}
                    for path in spec.isolation.devices
                ),
                *(
                    {"PathOnHost": d.source, "PathInContainer": d.target, "CgroupPermissions": "r"}
                    for d in spec.devices
                ),
            ],
            "LogConfig": console_log.log_config(spec.console_log_max_mb),
        },
    }
    if spec.entrypoint:
        config["Entrypoint"] = list(spec.entrypoint)
        config["Cmd"] = list(spec.command)
    if spec.isolation.volumes:
        config["Volumes"] = {path: {} for path in spec.isolation.volumes}
    if spec.stop_signal:
        config["StopSignal"] = spec.stop_signal
    if spec.systemd:
        # See https://systemd.io/CONTAINER_INTERFACE. By the mount at /run, the runtime shim detects
        # that the first process is systemd.
        config["Env"].append("container=docker")
        config["HostConfig"] |= {"CgroupnsMode": "private", "Tmpfs": _SYSTEMD_TMPFS}
    return config


def _overlay(overlay: Overlay) -> dict[str, Any]:
    # Because the volume has no name, the engine removes it and its mount point with the container.
    options = {"type": "overlay", "device": "overlay", "o": overlay.options}
    return {
        "Type": "volume",
        "Target": overlay.target,
        "VolumeOptions": {
            "NoCopy": True,
            "Labels": {naming.LABEL_OVERLAY: "1"},
            "DriverConfig": {"Name": "local", "Options": options},
        },
    }


def _resources(limits: Limits) -> dict[str, Any]:
    """Return the limits that the engine sets, as a part of a request's body."""
    return {
        "CpuShares": limits.cpu_shares,
        "CpuPeriod": limits.cpu_period_us,
        "CpuQuota": limits.cpu_quota_us,
        "CpusetCpus": _numbers(limits.cpuset_cpus),
        "CpusetMems": _numbers(limits.cpuset_mems),
        "Memory": limits.memory_bytes,
        "MemorySwap": limits.memory_bytes + limits.swap_bytes,
        "PidsLimit": limits.pids,
        "StorageOpt": {"size": str(limits.disk_bytes)} if limits.disk_bytes else {},
    }


def update_body(limits: Limits) -> dict[str, Any]:
    """Return the body of an update. 0 and an empty string in it mean no change."""
    changes = {**_resources(limits), "CpuQuota": limits.cpu_quota_us or -1}
    del changes["StorageOpt"]
    return changes


def _isolation(isolation: Isolation, memory_bytes: int) -> dict[str, Any]:
    shm_bytes = isolation.shm_bytes
    config: dict[str, Any] = {
        "CapDrop": ["ALL"],
        "CapAdd": list(isolation.capabilities),
        "OomScoreAdj": isolation.oom_score_adj,
        "Ulimits": [
            {"Name": limit.name, "Soft": limit.soft, "Hard": limit.hard}
            for limit in isolation.resource_limits
        ],
        "Sysctls": dict(isolation.sysctls),
        # Half of the memory, as on a virtual machine: the kernel's default for a tmpfs.
        "ShmSize": memory_bytes // 2 if shm_bytes is None else shm_bytes,
    }
    if isolation.nesting == Nesting.HOST:
        # The default profiles deny system calls that create containers, so neither applies.
        config["SecurityOpt"] = ["apparmor=unconfined", "seccomp=unconfined"]
        return config
    config["SecurityOpt"] = [f"seccomp={seccomp.profile(isolation)}"]
    config["MaskedPaths"] = list(MASKED_PATHS)
    if isolation.nesting == Nesting.UNPRIVILEGED or "SYS_ADMIN" in isolation.capabilities:
        # The engine's profile denies all mounts. The user namespace denies what else it denies.
        config["SecurityOpt"].insert(0, "apparmor=unconfined")
    if isolation.nesting == Nesting.UNPRIVILEGED:
        # An engine inside writes /proc/sys/net of its own network namespace.
        config |= {"CgroupnsMode": "private", "ReadonlyPaths": []}
    return config


def usage(stats: Mapping[str, Any]) -> Usage:
    """Return the counters of a container from its statistics."""

    def total(kind: str, operation: str) -> int:
        rows = stats["blkio_stats"].get(kind) or ()
        return sum(row["value"] for row in rows if row["op"].lower() == operation)

    cpu, memory = stats["cpu_stats"]["cpu_usage"], stats["memory_stats"]
    return Usage(
        cpu_nanoseconds=cpu["total_usage"],
        cpu_nanoseconds_each=tuple(cpu.get("percpu_usage") or ()),
        memory_bytes=memory.get("usage", 0),
        memory_limit_bytes=memory.get("limit", 0),
        disk_read_bytes=total("io_service_bytes_recursive", "read"),
        disk_read_requests=total("io_serviced_recursive", "read"),
        disk_write_bytes=total("io_service_bytes_recursive", "write"),
        disk_write_requests=total("io_serviced_recursive", "write"),
    )


def moment(text: str | None) -> datetime.datetime | None:
    """Return a time in UTC; None if it is empty or Go's zero time, which is in year 1."""
    if not text or text.startswith("0001-"):
        return None
    found: datetime.datetime = timeutils.normalize_time(timeutils.parse_isotime(text))
    return found


def _numbers(numbers: frozenset[int]) -> str:
    return ",".join(map(str, sorted(numbers)))


def create_archive(files: Mapping[str, bytes]) -> bytes:
    """Return a tar archive of regular files by path, owned by root and readable by all."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def extract_file(chunks: Iterable[bytes]) -> bytes | None:
    """Return the content of a tar archive's first entry.

    Returns None if the entry is not a regular file, or the archive is larger than 64 KiB.
    """
    content = b""
    for chunk in chunks:
        content += chunk
        if len(content) > _LARGEST_READ:
            return None
    # Because the file may shrink while the engine reads it, the archive may be incomplete.
    with contextlib.suppress(tarfile.ReadError), tarfile.open(fileobj=io.BytesIO(content)) as read:
        entry = read.next()
        source = read.extractfile(entry) if entry is not None and entry.isreg() else None
        return source.read() if source is not None else None
    return None
