# SPDX-License-Identifier: Apache-2.0
"""Data that the modules of the driver exchange: frozen dataclasses without behaviour and I/O."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from novadocker.extra_specs import Nesting
from novadocker.linux.cgroup import DiskRates
from novadocker.privsep.network.types import NetworkRate


@dataclass(frozen=True)
class EngineImage:
    """An image in the engine.

    :ivar id: ``sha256:`` and 64 hex digits
    :ivar size_bytes: size of all its unpacked layers; 0 if the engine does not tell it
    :ivar stop_signal: the signal that stops its first process; empty if the image sets none
    :ivar platform: operating system and architecture, such as ``linux/amd64``
    :ivar named_at: the time when it last got a name; None if it never got one
    :ivar environment: its environment variables (ENV), each as ``NAME=value``
    :ivar labels: names and values of its labels (LABEL)
    :ivar working_folder: its working directory (WORKDIR)
    :ivar volumes: mount points of its volumes (VOLUME)
    :ivar layers: directories of its layers; empty with storage drivers other than overlay2
    """

    id: str
    size_bytes: int = 0
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    stop_signal: str = ""
    platform: str = ""
    named_at: datetime | None = None
    environment: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    working_folder: str = ""
    volumes: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """The limits of a server's resources; each limit can change while the server runs.

    :ivar cpu_shares: relative weight when CPUs are contended, as in cgroup v1 (1024 is one CPU's)
    :ivar memory_bytes: memory, without swap
    :ivar swap_bytes: swap in addition to the memory
    :ivar pids: processes and threads
    :ivar cpu_period_us: the period of ``cpu_quota_us`` in microseconds
    :ivar cpu_quota_us: CPU time, on all CPUs together, in each period; 0 means no limit
    :ivar cpuset_cpus: the host's CPUs that the server may use; empty means all
    :ivar cpuset_mems: the host's NUMA nodes whose memory the server may use; empty means all
    :ivar disk_bytes: size of the root disk; 0 means no limit
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
    """A limit of setrlimit(2), such as ``nofile``, for each process; -1 means no limit."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True)
class Isolation:
    """The isolation of a server; it cannot change during the server's life.

    :ivar capabilities: all capabilities of the server's root, without ``CAP_``
    :ivar devices: paths of the host's devices that the server may use
    :ivar shm_bytes: size of /dev/shm; None means half of the memory at the creation
    :ivar oom_score_adj: added to the server's score when the host's kernel is out of memory
    :ivar nesting: the containers that the server may run itself
    :ivar sysctls: names and values of sysctls of the server's own namespaces
    :ivar volumes: directories that are volumes of the server besides those of its image
    """

    capabilities: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    resource_limits: tuple[ResourceLimit, ...] = ()
    shm_bytes: int | None = None
    oom_score_adj: int = 0
    nesting: Nesting = Nesting.NO
    sysctls: tuple[tuple[str, str], ...] = ()
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mount:
    """A directory or a device of the host in a container; not writable unless set."""

    source: str
    target: str
    writable: bool = False


@dataclass(frozen=True)
class Overlay:
    """An overlay that the engine mounts while a container runs; writable.

    :ivar options: as for mount(8)
    """

    options: str
    target: str


@dataclass(frozen=True)
class ContainerSpec:
    """The specification of a container that is to be created.

    The image's entrypoint and command apply if both of these are empty, and its stop signal if
    ``stop_signal`` is empty.

    :ivar environment: environment variables besides the image's
    :ivar systemd: True if the first process is systemd, which has control groups of its own
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
    environment: Mapping[str, str] = field(default_factory=dict)
    systemd: bool = False
    overlays: tuple[Overlay, ...] = ()


@dataclass(frozen=True)
class Container:
    """A container in the engine's list.

    :ivar status: the engine's word (``running``, ``exited``...)
    :ivar exit_code: the exit status of the first process; None if the container has not ended
    """

    id: str
    name: str
    status: str
    labels: Mapping[str, str]
    exit_code: int | None = None


@dataclass(frozen=True)
class ContainerEvent:
    """An event of a container.

    :ivar action: the engine's name of the event (``start``, ``die``, ``oom``...)
    :ivar time_ns: nanoseconds since the epoch by the engine's clock
    :ivar attributes: the event's data, such as ``exitCode``, and the container's labels, which
        replace data of the same name; an image can set each label that the driver does not set
    """

    name: str
    action: str
    time_ns: int
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class ContainerDetail:
    """The details of a container.

    :ivar pid: the first process; 0 unless the container runs or is paused
    :ivar exit_code: the exit status of the first process of the last run; None without one
    :ivar finished_at: the end of the last run; None without one
    :ivar last_start: the engine's text of the time of the last start, also after its end
    """

    id: str
    name: str
    status: str
    labels: Mapping[str, str]
    pid: int
    stop_signal: str
    started_at: datetime | None
    image_id: str = ""
    exit_code: int | None = None
    finished_at: datetime | None = None
    last_start: str = ""


OVERLAYFS = "overlayfs"
"""The name of containerd's default snapshotter, which no storage driver of the engine has."""


@dataclass(frozen=True)
class Storage:
    """The host's directories of a container's files.

    :ivar driver: the storage driver, such as ``overlay2``, or ``containerd's overlayfs``
    :ivar upper: the directory of the container's own files; empty with other drivers
    :ivar lowers: the directories of its image's layers, from the highest
    :ivar volumes: the directory of each volume by its path in the container
    :ivar work: the work directory of overlayfs beside ``upper``
    """

    driver: str
    upper: str = ""
    lowers: tuple[str, ...] = ()
    volumes: Mapping[str, str] = field(default_factory=dict)
    work: str = ""


@dataclass(frozen=True)
class EngineInfo:
    """The engine and its host.

    :ivar version: the engine's release, such as ``20.10.24``
    :ivar memory_bytes: physical memory of the host
    :ivar backing_filesystem: of the data root, such as ``xfs``; empty if the engine omits it
    :ivar runtimes: path of the program of each registered OCI runtime by the runtime's name
    :ivar warnings: the engine's own warnings about the host
    :ivar user_namespaces: True if containers have their own users (``userns-remap``)
    :ivar seccomp: True if the engine and the kernel support seccomp profiles
    :ivar containerd_store: True if containerd keeps the images and layers (the "containerd image
        store", from Engine 29 on the default of a new data root)
    :ivar containerd_address: path of containerd's socket; empty before Engine 27
    :ivar rootless: True if the engine does not run as root
    :ivar selinux: True if the engine labels containers for SELinux (``selinux-enabled``)
    :ivar apparmor: True if the engine confines containers by AppArmor
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
    seccomp: bool = False
    containerd_store: bool = False
    containerd_address: str = ""
    rootless: bool = False
    selinux: bool = False
    apparmor: bool = False


@dataclass(frozen=True)
class Usage:
    """The counters of a container since its start.

    :ivar cpu_nanoseconds: CPU time used on all CPUs
    :ivar cpu_nanoseconds_each: CPU time used on each CPU of the host, if the kernel counts it
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

    :ivar connection: carries the terminal's input and output
    :ivar early: output that arrived before the connection could be read
    :ivar path: path of the terminal's resource in the engine's REST API
    """

    connection: socket.socket
    early: bytes
    path: str
