# SPDX-License-Identifier: Apache-2.0
"""Load averages of each server's own, where lxcfs counts none.

A server has a file of them mounted at /proc/loadavg. The file stays where it is and is written in
place, as a bind mount shows what was there when it was made. It outlives nova-compute and the host:
a container that finds no source of its mount does not start.
"""

import errno
import math
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from oslo_log import log as logging

from novadocker import exception
from novadocker.linux import cgroup
from novadocker.virt.docker.containers.servers import Listing
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.model import Mount

LOG = logging.getLogger(__name__)

TARGET = "/proc/loadavg"

# as the kernel counts (LOAD_FREQ), and over what time it averages
_LOOK_SECONDS = 5.0
_PERIODS_SECONDS = (60, 300, 900)
# of the line: a shorter one must leave nothing of the one before
_WIDTH = 63
_LINE = re.compile(r"([0-9]{1,9}\.[0-9]{2}) ([0-9]{1,9}\.[0-9]{2}) ([0-9]{1,9}\.[0-9]{2}) .*")
# what the kernel's loads count: tasks that run or could, and those that wait and can't be woken
_RUNNING, _UNINTERRUPTIBLE = b"R", b"D"

# a server may stop or be deleted at any moment, and is looked for again
_GONE = (exception.ContainerNotFound, FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True)
class Tasks:
    """The threads of a server now.

    :ivar last: the highest thread id, as the server itself sees it
    """

    running: int = 0
    uninterruptible: int = 0
    total: int = 0
    last: int = 0


@dataclass(frozen=True)
class Averages:
    """Threads that run or wait uninterruptibly, averaged over 1, 5 and 15 minutes."""

    values: tuple[float, ...] = (0.0, 0.0, 0.0)

    def after(self, seconds: float, tasks: Tasks) -> "Averages":
        """Return the averages when there were as many tasks for some time.

        Each is the exponential average of the kernel's (kernel/sched/loadavg.c).
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
    """Return the line of proc(5), always of one length."""
    shown = " ".join(f"{value:.2f}" for value in averages.values)
    line = f"{shown} {tasks.running}/{tasks.total} {tasks.last}"
    return f"{line:<{_WIDTH}}\n".encode()


def parse(line: bytes) -> Averages:
    """Return the averages of a line; none at all if it is no such line."""
    found = _LINE.fullmatch(line.decode("ascii", "replace").rstrip())
    return Averages(tuple(map(float, found.groups()))) if found else Averages()


@dataclass
class _Watched:
    """A server that runs: its control group's folder, and its averages at a time."""

    container_id: str
    group: Path
    threads_file: str
    averages: Averages
    at: float
    line: bytes = b""


class Loads:
    """Keeps the files of load averages; safe to share between threads.

    :param folder: of the files, named by the servers' UUIDs
    """

    def __init__(self, folder: Path, engine: Engine, listing: Listing) -> None:
        self._folder = folder
        self._engine = engine
        self._listing = listing
        self._stopped = threading.Event()
        # of the thread alone
        self._watched: dict[str, _Watched] = {}
        self._unwritten: set[str] = set()

    def start(self) -> None:
        """Begin to count."""
        threading.Thread(target=self._run, name="loads", daemon=True).start()

    def stop(self) -> None:
        """Count no more."""
        self._stopped.set()

    def mount(self, instance_uuid: str) -> Mount:
        """Return what gives a new container load averages, and make their file.

        :raises OSError: there can't be one
        """
        self._folder.mkdir(0o755, parents=True, exist_ok=True)
        file = self._folder / instance_uuid
        if not file.exists():
            file.write_bytes(render(Averages(), Tasks()))
            file.chmod(0o644)
        return Mount(str(file), TARGET)

    def delete(self, instance_uuid: str) -> None:
        """Remove the file of a server; absent is fine."""
        (self._folder / instance_uuid).unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            self._count()

    def _count(self) -> None:
        files = set(os.listdir(self._folder)) if self._folder.is_dir() else set()
        for instance_uuid in self._watched.keys() - files:
            del self._watched[instance_uuid]
        if files - self._watched.keys():
            self._find(files - self._watched.keys())
        for instance_uuid, server in list(self._watched.items()):
            try:
                self._update(instance_uuid, server)
            except _GONE:
                del self._watched[instance_uuid]
            except OSError as error:
                if instance_uuid not in self._unwritten:
                    LOG.warning("Server %s has old load averages: %s", instance_uuid, error)
                self._unwritten.add(instance_uuid)
            else:
                self._unwritten.discard(instance_uuid)

    def _update(self, instance_uuid: str, server: _Watched) -> None:
        tasks = count_tasks(server.group, server.threads_file)
        now = time.monotonic()
        server.averages = server.averages.after(now - server.at, tasks)
        server.at = now
        line = render(server.averages, tasks)
        if line != server.line:
            descriptor = os.open(self._folder / instance_uuid, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(descriptor, line, 0)
            finally:
                os.close(descriptor)
            server.line = line

    def _find(self, uuids: set[str]) -> None:
        """Find those of the servers that run."""
        try:
            servers = self._listing.recent_servers()
            for instance_uuid in uuids & servers.keys():
                if servers[instance_uuid].status in ("running", "paused"):
                    with suppress(*_GONE):
                        self._watch(instance_uuid, servers[instance_uuid].id)
        except (exception.EngineUnavailable, exception.EngineError) as error:
            LOG.debug("Load averages of new servers come later: %s", error)

    def _watch(self, instance_uuid: str, container_id: str) -> None:
        found = self._engine.inspect_container(container_id)
        if not found.pid:
            return
        groups = cgroup.groups(found.pid, container_id)
        file = self._folder / instance_uuid
        averages, age = read_file(file, found.started_at)
        self._watched[instance_uuid] = _Watched(
            container_id=container_id,
            group=groups.folders["pids" if groups.version == 1 else ""],
            threads_file="tasks" if groups.version == 1 else "cgroup.threads",
            averages=averages,
            at=time.monotonic() - age,
        )


def read_file(file: Path, started_at: datetime | None) -> tuple[Averages, float]:
    """Return the averages of a file, and the seconds since they were that.

    Those of before a server's start are none.

    :raises FileNotFoundError: there is no file
    """
    with open(file, "rb") as source:
        averages = parse(source.read(_WIDTH + 1))
        written_at = os.fstat(source.fileno()).st_mtime
    if started_at is None or started_at.timestamp() > written_at:
        return Averages(), 0.0
    # the clock may have been set
    return averages, max(0.0, time.time() - written_at)


def count_tasks(group: Path, threads_file: str) -> Tasks:
    """Count the threads in a control group and in those below it.

    :param threads_file: with the ids of the threads of a group
    :raises FileNotFoundError: the group is gone
    """
    threads = sorted(_threads(group, threads_file))
    if not threads:
        # a folder of version 1 remains for a moment
        return Tasks()
    states = [_state(thread) for thread in threads]
    return Tasks(
        running=states.count(_RUNNING),
        uninterruptible=states.count(_UNINTERRUPTIBLE),
        total=len(threads),
        last=_own_id(threads[-1]),
    )


def _threads(group: Path, threads_file: str) -> Iterator[int]:
    try:
        yield from map(int, (group / threads_file).read_text().split())
    except OSError as error:
        # what the kernel says of a group that was removed after its file was opened
        if error.errno == errno.ENODEV:
            raise FileNotFoundError(f"{group} is gone") from error
        raise
    # two names lead to a folder without folders; where nobody counts there is one
    if group.stat().st_nlink != 2:
        for entry in os.scandir(group):
            if entry.is_dir(follow_symlinks=False):
                with suppress(FileNotFoundError):
                    yield from _threads(Path(entry.path), threads_file)


def _state(thread: int) -> bytes:
    """Return the letter of a thread's state (proc(5)); nothing if it ended."""
    try:
        with open(f"/proc/{thread}/stat", "rb", buffering=0) as source:
            # its name may hold any byte
            return source.read(512).rpartition(b")")[2][1:2]
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _own_id(thread: int) -> int:
    """Return a thread's id in the innermost namespace it has one in; 0 if it ended."""
    try:
        status = Path(f"/proc/{thread}/status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^NSpid:.*?([0-9]+)$", status, re.MULTILINE)
    return int(found[1]) if found else 0
