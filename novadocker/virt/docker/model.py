# SPDX-License-Identifier: Apache-2.0
"""What the modules of the driver hand each other: frozen dataclasses, no behaviour, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class EngineImage:
    """An image as the engine knows it; ``id`` is ``sha256:`` and 64 hex digits."""

    id: str
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What a server may use at most.

    :ivar nano_cpus: CPU time in billionths of a CPU
    :ivar cpu_shares: relative weight when CPUs are contended, as in cgroup v1 (1024 is one CPU's)
    :ivar memory_bytes: memory, without swap
    :ivar swap_bytes: swap beyond it
    :ivar pids: processes and threads
    """

    nano_cpus: int
    cpu_shares: int
    memory_bytes: int
    swap_bytes: int
    pids: int


@dataclass(frozen=True)
class ContainerSpec:
    """What a container must look like when it is created.

    An empty ``entrypoint`` and ``command`` leave the image's own in force.
    """

    name: str
    image_id: str
    hostname: str
    labels: Mapping[str, str]
    runtime: str
    limits: Limits
    console_log_max_mb: int
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Container:
    """A line of the engine's list: ``status`` is the engine's word (``running``, ``exited``...)."""

    id: str
    name: str
    status: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class ContainerDetail:
    """What the engine knows of one container; ``pid`` is 0 unless it runs or is paused."""

    id: str
    name: str
    status: str
    labels: Mapping[str, str]
    pid: int
    stop_signal: str
    started_at: datetime | None


@dataclass(frozen=True)
class EngineInfo:
    """Facts of the engine and its host.

    :ivar version: the engine's release, such as ``20.10.24``
    :ivar memory_bytes: physical memory of the host
    :ivar backing_filesystem: of the data root, such as ``xfs``; empty where it is not told
    :ivar runtimes: the registered OCI runtimes, by name, with the path of each one's program
    :ivar warnings: the engine's own warnings about the host
    """

    version: str
    api_version: str
    cpus: int
    memory_bytes: int
    architecture: str
    data_root: str
    storage_driver: str
    cgroup_version: str
    live_restore: bool
    runtimes: Mapping[str, str]
    backing_filesystem: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Usage:
    """A moment's counters of a container, since its start.

    :ivar cpu_nanoseconds: CPU time used, in all
    :ivar cpu_nanoseconds_each: the same for each CPU of the host, where the kernel counts it
    """

    cpu_nanoseconds: int
    cpu_nanoseconds_each: tuple[int, ...]
    memory_bytes: int
    memory_limit_bytes: int
    disk_read_bytes: int
    disk_read_requests: int
    disk_write_bytes: int
    disk_write_requests: int
