# SPDX-License-Identifier: Apache-2.0
"""The watch that detects incidents of instances and reports them within a second.

The kernel notifies pollers of changes of ``memory.events`` and ``pids.events`` (cgroup-v2.rst; with
cgroup v1 some kernels notify only of the latter, or of neither), and logs the first occurrence. All
counters are also read twice a second, because not every change is notified, and to find new
instances.
"""

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from novadocker.exporter import attribution, incidents
from novadocker.exporter.connection_tables import ConnectionTables
from novadocker.exporter.identity import Identities
from novadocker.exporter.incidents import Incident
from novadocker.exporter.kernel_log import KernelLog, Record
from novadocker.exporter.rings import Rings
from novadocker.exporter.tree import Tree
from novadocker.exporter.watched import REPORTED_LINES, Totals, Watched
from novadocker.linux import cgroup
from novadocker.linux.threads import Failures

LOG = logging.getLogger(__name__)

_WALK_SECONDS = 0.5
# Least time between walks when a line of the log names a container that is not watched yet.
_EARLY_WALK_SECONDS = 0.05
_SWEEP_SECONDS = 3600.0
# Limit of reads of /proc/PID/cgroup between two walks, because a tenant can fill the kernel's log.
_MOST_LOOKUPS = 500


class Watch:
    """The watch in its own thread; ``totals`` and ``lost_lines`` may be called from any thread.

    :param root: directory that contains /proc and /sys
    :param containers: the directory ``containers`` of the engine's data root
    :param rings: receives the lines of the kernel's log about each instance
    :param log: the kernel's log; None if it can't be read
    :param report: receives each incident
    """

    def __init__(
        self,
        root: Path,
        containers: Path,
        rings: Rings,
        log: KernelLog | None,
        report: Callable[[Incident], None],
    ) -> None:
        self._root = root
        self._tree = Tree(root)
        self._tables = ConnectionTables(root / "proc", self._tree)
        self._identities = Identities(containers)
        self._rings = rings
        self._log = log
        self._report = report
        self._attribution = attribution.Attribution(self._container_of_process)
        self._lock = threading.Lock()
        self._watched: dict[str, Watched] = {}
        self._totals: dict[str, Totals] = {}
        self._last: list[Incident] = []
        self._of_descriptor: dict[int, str] = {}
        self._poll = select.epoll()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll.register(self._stop, select.EPOLLIN)
        self._stopped = False
        self._log_registered = False
        self._walked_at = self._sweep_at = 0.0
        self._is_kept = True
        self._lookups = 0
        self._thread: threading.Thread | None = None
        self._turns = Failures("Failed to watch")
        self._failures = Failures("Failed to watch container")
        self._walk(first=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread, wait for its end and close all files."""
        self._stopped = True
        os.eventfd_write(self._stop, 1)
        if self._thread:
            self._thread.join()
        for container in list(self._watched):
            self._forget(container)
        self._poll.close()
        os.close(self._stop)
        if self._log:
            self._log.close()

    def totals(self) -> list[Totals]:
        """Return the totals of each instance that has a container."""
        with self._lock:
            return [replace(found, kinds=found.kinds.copy()) for found in self._totals.values()]

    def lost_lines(self) -> int | None:
        """Return the number of lost lines of the kernel's log; None if the log can't be read."""
        return self._log.lost if self._log else None

    def _run(self) -> None:
        while not self._stopped:
            with self._turns.of("for incidents of servers"):
                self.turn(_WALK_SECONDS)
                continue
            select.select([self._stop], [], [], _WALK_SECONDS)

    def turn(self, seconds: float) -> None:
        """Wait for an event or until ``seconds`` have passed, then report incidents."""
        self._listen()
        ready = {descriptor for descriptor, _ in self._poll.poll(self._patience(seconds))}
        # The log is read before the counters, because it names the process of an incident.
        records = list(self._log.records()) if self._log and not self._log.rest() else []
        now = time.monotonic()
        with self._lock:
            changed = self._take(records)
            changed |= {self._of_descriptor[found] for found in ready & self._of_descriptor.keys()}
            if any(map(attribution.kills, records)):
                changed |= self._watched.keys()
            for container in changed:
                self._count(container, now)
            if now >= self._walked_at + _WALK_SECONDS:
                self._lookups = 0
                self._walk()
            due = [*self._last, *self._due(time.monotonic())]
            self._last = []
        for incident in due:
            self._report(incident)

    def _patience(self, seconds: float) -> float:
        now = time.monotonic()
        waits = [
            found.pending.seconds_left(now, self._is_patient(found))
            for found in self._watched.values()
        ]
        waits.append(self._log.rest() or None if self._log else None)
        return min([seconds, *(wait for wait in waits if wait is not None)])

    def _listen(self) -> None:
        """Poll the kernel's log, but not while its rate limit pauses reading."""
        wanted = bool(self._log and not self._log.rest())
        if self._log and wanted != self._log_registered:
            with suppress(PermissionError):
                if wanted:
                    self._poll.register(self._log.descriptor, select.EPOLLIN)
                else:
                    self._poll.unregister(self._log.descriptor)
            self._log_registered = wanted

    def _is_patient(self, found: Watched) -> bool:
        return self._log is not None and not found.victim

    def _take(self, records: list[Record]) -> set[str]:
        """Store the lines of each instance. Return the ids of their containers."""
        lines: dict[str, list[str]] = {}
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        for record in records:
            if attribution.reports_full_table(record):
                self._tables.note_full()
            found = self._attribution.take(record)
            if found and self._knows(found.container):
                kept = lines.setdefault(found.container, [])
                kept += (f"{at} {line.text}" for line in found.records)
                if found.victim:
                    victim = f"{found.victim.name} (pid {found.victim.pid})"
                    self._watched[found.container].victim = victim
        now = time.monotonic()
        for container, kept in lines.items():
            # A walk for a later line may have found that the container no longer runs.
            if (watched := self._watched.get(container)) is None:
                continue
            watched.lines.extend(kept[-REPORTED_LINES:])
            watched.add(incidents.KERNEL_LINE, len(kept), now)
            totals = watched.totals
            totals.dropped_lines += self._keep(totals.labels["uuid"], kept)
        return set(lines)

    def _keep(self, instance_uuid: str, lines: list[str]) -> int:
        """Write lines about an instance. Return how many were not written."""
        try:
            dropped = self._rings.write(instance_uuid, lines)
        except (OSError, ValueError) as error:
            if self._is_kept:
                LOG.error("Failed to write the kernel's log lines of servers: %s", error)
            self._is_kept = False
            return len(lines)
        self._is_kept = True
        return dropped

    def _knows(self, container: str) -> bool:
        """Return True if a container belongs to an instance. Walks if it is not watched yet."""
        if (
            container not in self._watched
            and time.monotonic() >= self._walked_at + _EARLY_WALK_SECONDS
        ):
            self._walk()
        return container in self._watched

    def _count(self, container: str, now: float) -> None:
        """Read the counters of a container and add the incidents since the last read."""
        if watched := self._watched.get(container):
            with self._failures.of(container):
                self._count_watched(container, watched, now)

    def _count_watched(self, container: str, watched: Watched, now: float) -> None:
        counts = watched.read_counts()
        if counts is None:
            self._forget(container)
            return
        for kind, count in counts.items():
            watched.add(kind, count - watched.counts.get(kind, 0), now)
        watched.counts.update(counts)

    def _due(self, now: float) -> Iterator[Incident]:
        for watched in self._watched.values():
            for kind, count in watched.pending.take_due(now, self._is_patient(watched)):
                process = ""
                if kind == incidents.PIDS_LIMIT:
                    process = self._tree.commonest_command(watched.path)
                yield watched.incident(kind, count, process)

    # -- which servers there are --------------------------------------------------------------

    def _walk(self, first: bool = False) -> None:
        """Watch new containers, drop those that no longer run, and read all counters."""
        now = self._walked_at = time.monotonic()
        found = dict(self._tree.containers())
        for container in self._watched.keys() - found.keys():
            self._forget(container)
        self._failures.keep(found)
        for container in found.keys() - self._watched.keys():
            with self._failures.of(container):
                if server := self._identities.find(container):
                    totals = self._totals.setdefault(container, Totals(server.labels))
                    self._begin(container, Watched(totals, found[container], {}), first)
        self._identities.keep(self._totals.keys() | found.keys())
        for container in self._totals.keys() - found.keys():
            if self._identities.find(container) is None:
                del self._totals[container]
        for container in list(self._watched):
            self._count(container, now)
        self._tables.look(self._watched.values(), now)
        if now >= self._sweep_at:
            self._rings.remove_old({found.labels["uuid"] for found in self._totals.values()})
            self._sweep_at = now + _SWEEP_SECONDS

    def _begin(self, container: str, watched: Watched, first: bool) -> None:
        try:
            self._register(container, watched)
        except Exception:
            self._forget(container)
            raise
        if first:
            # Incidents before this program's start are not reported.
            watched.counts = watched.read_counts() or {}
            self._tables.begin(watched)

    def _register(self, container: str, watched: Watched) -> None:
        """Open the files with the counters of a container, and poll them."""
        self._watched[container] = watched
        for kind, file in self._tree.event_files(watched.path).items():
            with suppress(FileNotFoundError, NotADirectoryError):
                descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                watched.descriptors[kind] = descriptor
                self._of_descriptor[descriptor] = container
                # EPERM: this kernel does not notify of changes of this file.
                with suppress(PermissionError):
                    self._poll.register(descriptor, select.EPOLLPRI)

    def _forget(self, container: str) -> None:
        watched = self._watched.pop(container)
        self._last += watched.last_incidents(time.monotonic())
        for descriptor in watched.descriptors.values():
            del self._of_descriptor[descriptor]
            # Closing the descriptor also removes it from the epoll set.
            os.close(descriptor)

    def _container_of_process(self, process: int) -> str | None:
        self._lookups += 1
        if self._lookups > _MOST_LOOKUPS:
            return None
        return cgroup.container_of_process(process, self._root)
