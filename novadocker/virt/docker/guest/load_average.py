# SPDX-License-Identifier: Apache-2.0
"""Load averages of each instance, computed by the driver where lxcfs does not compute them.

Each instance has a file of ``state_files.load_averages`` mounted at /proc/loadavg. The files
survive a restart of nova-compute and of the host, because a container does not start if the source
of a bind mount is missing.
"""

import errno
import math
import os
import re
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

from oslo_log import log as logging

from novadocker import exception
from novadocker.linux import cgroup
from novadocker.linux.threads import Failures, Repeated
from novadocker.state_files import load_averages
from novadocker.virt.docker.containers.pending import HUNG_SECONDS
from novadocker.virt.docker.containers.servers import ServerList
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.engine.connection import PATIENCE
from novadocker.virt.docker.model import Mount

LOG = logging.getLogger(__name__)

TARGET = "/proc/loadavg"

# The kernel counts at this interval (LOAD_FREQ) and averages over these periods.
_LOOK_SECONDS = 5.0
_PERIODS_SECONDS = (60, 300, 900)
# The kernel's load counts threads in these states: runnable, and uninterruptible sleep.
_RUNNING, _UNINTERRUPTIBLE = b"R", b"D"

# So deep below a container's group, no path is longer than the kernel's PATH_MAX.
_DEEPEST = 12
_MOST_GROUPS = 4096
# The kernel returns ENODEV if the group was removed after its file was opened.
_GROUP_GONE = (errno.ENOENT, errno.ENODEV)

# An instance may stop or be deleted at any moment. If it is started again, _find finds it.
_GONE = (exception.ContainerNotFound, FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True)
class Tasks:
    """Numbers of an instance's threads at one moment.

    :ivar last: highest thread id in the instance's own process id namespace
    """

    running: int = 0
    uninterruptible: int = 0
    total: int = 0
    last: int = 0


@dataclass(frozen=True)
class Averages:
    """Averages of the runnable and uninterruptible threads over 1, 5 and 15 minutes."""

    values: tuple[float, ...] = (0.0, 0.0, 0.0)

    def after(self, seconds: float, tasks: Tasks) -> "Averages":
        """Return the averages after ``seconds`` during which the numbers were ``tasks``.

        They decay exponentially, as in the kernel (kernel/sched/loadavg.c).
        """
        count = tasks.running + tasks.uninterruptible
        kept = [math.exp(-seconds / period) for period in _PERIODS_SECONDS]
        return Averages(
            tuple(
                value * share + count * (1 - share)
                for value, share in zip(self.values, kept, strict=True)
            )
        )


def render(averages: Averages, tasks: Tasks) -> bytes:
    """Return the line of an instance's file."""
    return load_averages.render(averages.values, tasks.running, tasks.total, tasks.last)


@dataclass
class _Watched:
    """A running instance: its control group, and its averages at the monotonic time ``at``."""

    container_id: str
    group: Path
    threads_file: str
    averages: Averages
    at: float
    line: bytes = b""


class Loads:
    """The thread that updates the files of load averages; safe to share between threads.

    :param state_path: of nova-compute
    """

    def __init__(self, state_path: Path, engine: Engine, listing: ServerList) -> None:
        self._folder = Path(load_averages.directory(str(state_path)))
        self._engine = engine
        self._listing = listing
        self._repeated = Repeated("loads", self._count, _LOOK_SECONDS)
        # Only the thread uses these three.
        self._watched: dict[str, _Watched] = {}
        self._hung_until: dict[str, float] = {}
        self._failures = Failures("Failed to update the load averages of server")

    def start(self) -> None:
        """Start the thread."""
        self._repeated.start()

    def stop(self) -> None:
        """Stop the thread after the update that runs. Does not wait for it."""
        self._repeated.stop()

    def mount(self, instance_uuid: str) -> Mount:
        """Create an instance's file unless it exists, and return its mount for a new container.

        :raises OSError: the file can't be written
        """
        self._folder.mkdir(0o755, parents=True, exist_ok=True)
        file = self._folder / instance_uuid
        if not file.exists():
            file.write_bytes(render(Averages(), Tasks()))
            file.chmod(0o644)
        return Mount(str(file), TARGET)

    def delete(self, instance_uuid: str) -> None:
        """Delete an instance's file. Does nothing if the file does not exist."""
        (self._folder / instance_uuid).unlink(missing_ok=True)

    def _count(self) -> None:
        files = set(os.listdir(self._folder)) if self._folder.is_dir() else set()
        for instance_uuid in self._watched.keys() - files:
            del self._watched[instance_uuid]
        self._failures.keep(files)
        for instance_uuid in self._hung_until.keys() - files:
            del self._hung_until[instance_uuid]
        if files - self._watched.keys():
            self._find(files - self._watched.keys())
        for instance_uuid, server in list(self._watched.items()):
            with self._failures.of(instance_uuid):
                try:
                    self._update(instance_uuid, server)
                except _GONE:
                    del self._watched[instance_uuid]

    def _update(self, instance_uuid: str, server: _Watched) -> None:
        tasks = count_tasks(server.group, server.threads_file)
        now = time.monotonic()
        server.averages = server.averages.after(now - server.at, tasks)
        server.at = now
        line = render(server.averages, tasks)
        if line != server.line:
            load_averages.write(self._folder / instance_uuid, line)
            server.line = line

    def _find(self, uuids: set[str]) -> None:
        """Add the running ones of these instances to the watched ones."""
        try:
            servers = self._listing.recent_servers()
        except (exception.EngineUnavailable, exception.EngineError) as error:
            LOG.debug("Failed to list new servers for load averages: %s", error)
            return
        for instance_uuid in uuids & servers.keys():
            if time.monotonic() < self._hung_until.get(instance_uuid, 0.0):
                continue
            if servers[instance_uuid].status in ("running", "paused"):
                with self._failures.of(instance_uuid), suppress(*_GONE):
                    try:
                        self._watch(instance_uuid, servers[instance_uuid].id)
                    except exception.ContainerHangs as error:
                        self._hung_until[instance_uuid] = time.monotonic() + HUNG_SECONDS
                        LOG.warning(
                            "Failed to begin the load averages of the instance: %s",
                            error,
                            instance_uuid=instance_uuid,
                        )
                    except exception.EngineUnavailable as error:
                        LOG.debug("Failed to inspect new servers for load averages: %s", error)
                        return

    def _watch(self, instance_uuid: str, container_id: str) -> None:
        with self._engine.within(PATIENCE):
            found = self._engine.inspect_container(container_id)
        if not found.pid:
            return
        groups = cgroup.groups(found.pid, container_id)
        file = self._folder / instance_uuid
        averages, age = read_file(file, found.started_at)
        self._watched[instance_uuid] = _Watched(
            container_id=container_id,
            group=groups.directories["pids" if groups.version == 1 else ""],
            threads_file="tasks" if groups.version == 1 else "cgroup.threads",
            averages=averages,
            at=time.monotonic() - age,
        )


def read_file(file: Path, started_at: datetime | None) -> tuple[Averages, float]:
    """Return the averages in a file, and their age in seconds.

    If the file was written before the instance's start, the averages are zero.

    :raises FileNotFoundError: the file does not exist
    """
    values, written_at = load_averages.read(file)
    if started_at is None or started_at.timestamp() > written_at:
        return Averages(), 0.0
    # The age would be negative if the clock was set back after the write.
    return Averages(values) if values else Averages(), max(0.0, time.time() - written_at)


def count_tasks(group: Path, threads_file: str) -> Tasks:
    """Count the threads in a control group and in the groups below it.

    A tenant can create any number of groups. Groups deeper than 12 levels below, and those beyond
    4,096 groups, are not counted.

    :param threads_file: name of the file with the thread ids of a group
    :raises FileNotFoundError: the group no longer exists
    """
    threads = sorted(_read_threads(group, threads_file))
    if not threads:
        # The directory of a version 1 group exists for a moment after its last process ended.
        return Tasks()
    states = [_state(thread) for thread in threads]
    return Tasks(
        running=states.count(_RUNNING),
        uninterruptible=states.count(_UNINTERRUPTIBLE),
        total=len(threads),
        last=_own_id(threads[-1]),
    )


def _read_threads(top: Path, threads_file: str) -> list[int]:
    found: list[int] = []
    waiting = deque([(str(top), 0)])
    left = _MOST_GROUPS - 1
    while waiting:
        group, depth = waiting.popleft()
        try:
            with open(f"{group}/{threads_file}", "rb") as source:
                found += map(int, source.read().split())
            below = list(islice(_groups_below(group), left if depth < _DEEPEST else 0))
        except OSError as error:
            # The tenant can remove groups at any time, and change the modes of those below.
            if depth and error.errno in (*_GROUP_GONE, errno.EACCES):
                continue
            if error.errno in _GROUP_GONE:
                raise FileNotFoundError(f"{group} is gone") from error
            raise
        left -= len(below)
        waiting += ((path, depth + 1) for path in below)
    return found


def _groups_below(group: str) -> Iterator[str]:
    # A directory without subdirectories has two links, or one on file systems that do not count.
    if os.stat(group).st_nlink != 2:
        with os.scandir(group) as entries:
            yield from (entry.path for entry in entries if entry.is_dir(follow_symlinks=False))


def _state(thread: int) -> bytes:
    """Return the letter of a thread's state (proc(5)); empty if the thread has ended."""
    try:
        with open(f"/proc/{thread}/stat", "rb", buffering=0) as source:
            # The name before the state may contain any byte, so search for the last bracket.
            return source.read(512).rpartition(b")")[2][1:2]
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _own_id(thread: int) -> int:
    """Return a thread's id in its innermost process id namespace; 0 if the thread has ended."""
    try:
        # The kernel escapes line feeds in the thread's name, but not carriage returns.
        status = Path(f"/proc/{thread}/status").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(rb"^NSpid:.*?([0-9]+)$", status, re.MULTILINE)
    return int(found[1]) if found else 0
