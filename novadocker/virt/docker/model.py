# SPDX-License-Identifier: Apache-2.0
"""What the modules of the driver hand each other: frozen dataclasses, no behaviour, no I/O."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from novadocker.linux.cgroup import DiskRates
from novadocker.privsep.network.types import NetworkRate


@dataclass(frozen=True)
class EngineImage:
    """An image as the engine knows it.

    :ivar id: ``sha256:`` and 64 hex digits
    :ivar size_bytes: of all its layers, unpacked
    :ivar stop_signal: by which it wants to be stopped; empty if it does not say
    :ivar platform: operating system and architecture, such as ``linux/amd64``
    :ivar named_at: when it got a name last; None if it never did
    """

    id: str
    size_bytes: int = 0
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    stop_signal: str = ""
    platform: str = ""
    named_at: datetime | None = None


@dataclass(frozen=True)
class Limits:
    """What a server may use at most; each of them can be changed while it runs.

    :ivar cpu_shares: relative weight when CPUs are contended, as in cgroup v1 (1024 is one CPU's)
    :ivar memory_bytes: memory, without swap
    :ivar swap_bytes: swap beyond it
    :ivar pids: processes and threads
    :ivar cpu_period_us: microseconds for which ``cpu_quota_us`` counts
    :ivar cpu_quota_us: CPU time, of all CPUs together, in each period; 0 is no limit
    :ivar cpuset_cpus: the host's CPUs it may run on; empty is any
    :ivar cpuset_mems: the host's NUMA nodes it may have memory of; empty is any
    :ivar disk_bytes: size of the root disk; 0 is no limit
    :ivar inbound: traffic to the server
    :ivar outbound: traffic from the server
    """

    cpu_shares: int
    memory_bytes: int
    swap_bytes: int
    pids: int
    cpu_period_us: int = 100_000
    cpu_quota_us: int = 0
    cpuset_cpus: frozenset[int] = frozenset()
    cpuset_mems: frozenset[int] = frozenset()
    disk_bytes: int = 0
    disk: DiskRates = field(default_factory=DiskRates)
    inbound: NetworkRate | None = None
    outbound: NetworkRate | None = None


@dataclass(frozen=True)
class ResourceLimit:
    """A limit of setrlimit(2), such as ``nofile``, for each process; -1 is none."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True)
class Isolation:
    """How a server is kept apart; nothing of it can be changed while the server lives.

    :ivar capabilities: all that its root may have, without ``CAP_``
    :ivar devices: paths of devices of the host's it may use
    :ivar shm_bytes: size of /dev/shm; None is the engine's default
    :ivar oom_score_adj: how much sooner than others it is killed when the host is out of memory
    :ivar nesting: whether it may run containers itself
    """

    capabilities: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    resource_limits: tuple[ResourceLimit, ...] = ()
    shm_bytes: int | None = None
    oom_score_adj: int = 0
    nesting: bool = False


@dataclass(frozen=True)
class Mount:
    """A folder or a device of the host's that a container sees, and mostly can't write to."""

    source: str
    target: str
    writable: bool = False


@dataclass(frozen=True)
class Overlay:
    """An overlay that the engine mounts while a container runs; the container can write to it.

    :ivar options: as for mount(8)
    """

    options: str
    target: str


@dataclass(frozen=True)
class ContainerSpec:
    """What a container must look like when it is created.

    An empty ``entrypoint`` and ``command`` leave the image's own in force, and so does an empty
    ``stop_signal``.

    :ivar systemd: its first process is systemd, which keeps control groups of its own
    """

    name: str
    image_id: str
    hostname: str
    labels: Mapping[str, str]
    runtime: str
    limits: Limits
    isolation: Isolation
    console_log_max_mb: int
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Mount, ...] = ()
    stop_signal: str = ""
    systemd: bool = False
    overlays: tuple[Overlay, ...] = ()


@dataclass(frozen=True)
class Container:
    """A line of the engine's list: ``status`` is the engine's word (``running``, ``exited``...)."""

    id: str
    name: str
    status: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class ContainerEvent:
    """Something that happened to a container.

    :ivar action: the engine's word (``start``, ``die``, ``oom``...)
    :ivar time_ns: when, in nanoseconds since the epoch by the engine's clock
    :ivar attributes: the container's labels, and facts of the event such as ``exitCode``
    """

    name: str
    action: str
    time_ns: int
    attributes: Mapping[str, str]


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
    image_id: str = ""


@dataclass(frozen=True)
class Storage:
    """Where the engine keeps a container's files.

    :ivar driver: the storage driver, such as ``overlay2``
    :ivar upper: the folder of what the container changed; empty with other drivers
    :ivar lowers: the folders of its image's layers, from the highest
    :ivar volumes: the folder of each volume by its path in the container
    :ivar work: the folder that overlayfs needs beside ``upper``
    """

    driver: str
    upper: str = ""
    lowers: tuple[str, ...] = ()
    volumes: Mapping[str, str] = field(default_factory=dict)
    work: str = ""


@dataclass(frozen=True)
class EngineInfo:
    """Facts of the engine and its host.

    :ivar version: the engine's release, such as ``20.10.24``
    :ivar memory_bytes: physical memory of the host
    :ivar backing_filesystem: of the data root, such as ``xfs``; empty where it is not told
    :ivar runtimes: the registered OCI runtimes, by name, with the path of each one's program
    :ivar warnings: the engine's own warnings about the host
    :ivar user_namespaces: whether containers have users of their own (``userns-remap``)
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
    user_namespaces: bool = False


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


@dataclass(frozen=True)
class Terminal:
    """A terminal in a container, open until its connection is closed.

    :ivar connection: carries what is typed one way and what is written the other
    :ivar early: what was written before anybody could read from the connection
    :ivar path: of the engine's resource that it belongs to
    """

    connection: socket.socket
    early: bytes
    path: str
