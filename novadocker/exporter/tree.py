# SPDX-License-Identifier: Apache-2.0
"""Reading the counters of every container from the control groups, v1 and v2."""

import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

from novadocker.exporter import parsing
from novadocker.exporter.files import KeptFiles, read, read_start
from novadocker.exporter.incidents import OOM_KILL, PIDS_LIMIT
from novadocker.exporter.parsing import DiskCounters, PortCounters
from novadocker.linux import cgroup

_DEEPEST = 8
_MOST_COMMANDS = 256
_MOST_GROUPS = 1024
_RATES = ("read_bps", "write_bps", "read_iops", "write_iops")
# Names in memory.stat of cgroup v2.
_STATISTICS = ("inactive_file", "slab_reclaimable")

Reader = Callable[[str, str], str | None]


@dataclass(frozen=True)
class Sample:
    """The counters of a container; None or empty if the kernel does not provide them.

    :ivar stalled: stall time in seconds by resource and kind, such as ``("memory", "full")``
    """

    cpu_seconds: float | None = None
    cpu_limit_cores: float | None = None
    cpu_periods: int | None = None
    cpu_throttled_periods: int | None = None
    cpu_throttled_seconds: float | None = None
    memory_usage: int | None = None
    memory_working_set: int | None = None
    memory_unreclaimable: int | None = None
    memory_limit: int | None = None
    oom_kills: int | None = None
    pids: int | None = None
    pids_limit: int | None = None
    pids_limit_hits: int | None = None
    tracked_connections: int | None = None
    disks: Mapping[str, DiskCounters] = field(default_factory=dict)
    disk_limits: Mapping[str, DiskCounters] = field(default_factory=dict)
    ports: Mapping[str, PortCounters] = field(default_factory=dict)
    stalled: Mapping[tuple[str, str], float] = field(default_factory=dict)


class Tree:
    """The control groups of a host.

    :param root: directory that contains /proc and /sys
    :param kept_files: how many files of control groups may stay open between scrapes
    """

    def __init__(self, root: Path = Path("/"), kept_files: int = 0) -> None:
        self._files = KeptFiles(kept_files)
        self._groups = str(root / "sys/fs/cgroup")
        self._proc = str(root / "proc")
        self.version = cgroup.version(root)

    def containers(self) -> Iterator[tuple[str, str]]:
        """Yield the id of each container and the path of its group below the hierarchy's root.

        Does not descend into a container's group, because the tenant names the groups there.
        """
        top = self._groups if self.version == 2 else f"{self._groups}/pids"
        waiting = [("", 0)]
        while waiting:
            path, depth = waiting.pop()
            for name in _folders(f"{top}{path}"):
                if container := cgroup.container_of_name(name):
                    yield container, f"{path}/{name}"
                elif depth < _DEEPEST:
                    waiting.append((f"{path}/{name}", depth + 1))

    def keep(self, paths: Set[str]) -> None:
        """Close the files of all groups but these."""
        self._files.keep(paths)

    def close(self) -> None:
        """Close all files."""
        self._files.close()

    def sample(self, path: str) -> Sample | None:
        """Return the counters of a container's group; None if the group has no process."""

        def of_group(controller: str, file: str) -> str | None:
            return self._files.read(path, self._file(path, controller, file))

        process = self.process(path)
        if process is None:
            return None
        network = f"{self._proc}/{process}/net"
        ports = parsing.ports(read(f"{network}/dev"))
        tracked = parsing.tracked_connections(read_start(f"{network}/stat/nf_conntrack"))
        common = _common(of_group) | {"ports": ports, "tracked_connections": tracked}
        own = _version_1(of_group) if self.version == 1 else _version_2(of_group)
        return Sample(**(common | own))  # type: ignore[arg-type]

    def process(self, path: str) -> int | None:
        """Return the id of a process in a group or below it; None if there is none."""
        return next(self._processes(path), None)

    def commonest_command(self, path: str) -> str:
        """Return the most frequent name among up to 256 processes of a group.

        Returns an empty string if the group has no process.
        """
        processes = itertools.islice(self._processes(path), _MOST_COMMANDS)
        names = (read(f"{self._proc}/{process}/comm") for process in processes)
        counted = Counter(name.rstrip("\n") for name in names if name)
        return next((name for name, _ in counted.most_common(1)), "")

    def event_files(self, path: str) -> dict[str, str]:
        """Return the files that count a group's out-of-memory kills and refused forks."""
        controller, file = cgroup.OOM_FILES[self.version]
        return {
            OOM_KILL: self._file(path, controller, file),
            PIDS_LIMIT: self._file(path, "pids", "pids.events"),
        }

    def _file(self, path: str, controller: str, file: str) -> str:
        hierarchy = f"/{controller}" if self.version == 1 else ""
        return f"{self._groups}{hierarchy}{path}/{file}"

    def _processes(self, path: str) -> Iterator[int]:
        """Yield the processes of a group and of those below it, to a depth of 2.

        systemd in a container moves all processes to groups below its own. At most 1,024 groups are
        read, because a tenant can create any number of them.
        """
        waiting = deque([(path, 0)])
        left = _MOST_GROUPS - 1
        while waiting:
            group, depth = waiting.popleft()
            listed = self._files.read(group, self._file(group, "pids", "cgroup.procs")) or ""
            yield from map(int, filter(str.isdecimal, listed.split()))
            below = _folders(self._file(group, "pids", ""), left if depth < 2 else 0)
            left -= len(below)
            waiting += ((f"{group}/{name}", depth + 1) for name in below)


def _common(of_group: Reader) -> dict[str, object]:
    return {
        "pids": parsing.number(of_group("pids", "pids.current")),
        "pids_limit": parsing.limit(of_group("pids", "pids.max")),
        "pids_limit_hits": parsing.flat(of_group("pids", "pids.events")).get("max"),
    }


def _counted(
    cpu: Mapping[str, int], usage: int | None, memory: Mapping[str, int]
) -> dict[str, object]:
    """Return the counters that have the same names in both versions."""
    return {
        "cpu_periods": cpu.get("nr_periods"),
        "cpu_throttled_periods": cpu.get("nr_throttled"),
        "memory_usage": usage,
        "memory_working_set": parsing.working_set(usage, memory),
        "memory_unreclaimable": parsing.unreclaimable(usage, memory),
    }


def _version_1(of_group: Reader) -> dict[str, object]:
    cpu = parsing.flat(of_group("cpu", "cpu.stat"))
    usage = parsing.number(of_group("memory", "memory.usage_in_bytes"))
    # The total_ values include the groups below, as all values of v2 do.
    counted = parsing.chosen(of_group("memory", "memory.stat"), ("total_inactive_file",))
    memory = {name.removeprefix("total_"): value for name, value in counted.items()}
    return {
        "cpu_seconds": _scaled(parsing.number(of_group("cpuacct", "cpuacct.usage")), 1e9),
        "cpu_limit_cores": parsing.cores_version_1(
            of_group("cpu", "cpu.cfs_quota_us"), of_group("cpu", "cpu.cfs_period_us")
        ),
        **_counted(cpu, usage, memory),
        "cpu_throttled_seconds": _scaled(cpu.get("throttled_time"), 1e9),
        "memory_limit": parsing.limit(of_group("memory", "memory.limit_in_bytes")),
        "oom_kills": parsing.flat(of_group(*cgroup.OOM_FILES[1])).get("oom_kill"),
        "disks": parsing.disks_version_1(
            of_group("blkio", "blkio.throttle.io_service_bytes"),
            of_group("blkio", "blkio.throttle.io_serviced"),
        ),
        "disk_limits": parsing.disk_limits_version_1(
            of_group("blkio", f"blkio.throttle.{rate}_device") for rate in _RATES
        ),
    }


def _version_2(of_group: Reader) -> dict[str, object]:
    cpu = parsing.flat(of_group("cpu", "cpu.stat"))
    usage = parsing.number(of_group("memory", "memory.current"))
    memory = parsing.chosen(of_group("memory", "memory.stat"), _STATISTICS)
    return {
        "cpu_seconds": _scaled(cpu.get("usage_usec"), 1e6),
        "cpu_limit_cores": parsing.cores_version_2(of_group("cpu", "cpu.max")),
        **_counted(cpu, usage, memory),
        "cpu_throttled_seconds": _scaled(cpu.get("throttled_usec"), 1e6),
        "memory_limit": parsing.limit(of_group("memory", "memory.max")),
        "oom_kills": parsing.flat(of_group(*cgroup.OOM_FILES[2])).get("oom_kill"),
        "disks": parsing.disks_version_2(of_group("io", "io.stat")),
        "disk_limits": parsing.disk_limits_version_2(of_group("io", "io.max")),
        "stalled": {
            (resource, kind): seconds
            for resource in ("cpu", "memory", "io")
            for kind, seconds in parsing.stalled_seconds(
                of_group(resource, f"{resource}.pressure")
            ).items()
        },
    }


def _scaled(value: int | None, divisor: float) -> float | None:
    return None if value is None else value / divisor


def _folders(path: str, most: int | None = None) -> list[str]:
    """Return the names of the directories in a directory, all or the first ones."""
    if most == 0:
        return []
    try:
        with os.scandir(path) as entries:
            names = (entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
            return list(itertools.islice(names, most))
    except (FileNotFoundError, NotADirectoryError):
        return []
