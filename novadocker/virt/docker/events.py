# SPDX-License-Identifier: Apache-2.0
"""Nova's lifecycle events of instances, from the engine's events of their containers."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from typing import Protocol

from nova.virt import event as virtevent
from oslo_log import log as logging

from novadocker import exception, naming
from novadocker.virt.docker.containers import servers
from novadocker.virt.docker.containers.servers import ServerList
from novadocker.virt.docker.engine.connection import PATIENCE
from novadocker.virt.docker.model import Container, ContainerDetail, ContainerEvent

LOG = logging.getLogger(__name__)

# Nova's transition by the action of the engine's event
TRANSITIONS: Mapping[str, int] = {
    "start": virtevent.EVENT_LIFECYCLE_STARTED,
    "die": virtevent.EVENT_LIFECYCLE_STOPPED,
    "pause": virtevent.EVENT_LIFECYCLE_PAUSED,
    "unpause": virtevent.EVENT_LIFECYCLE_RESUMED,
    "destroy": virtevent.EVENT_LIFECYCLE_STOPPED,
}

# Nova's transition to a state, by the engine's status
_STATES: Mapping[str, int] = {
    "running": virtevent.EVENT_LIFECYCLE_STARTED,
    "paused": virtevent.EVENT_LIFECYCLE_PAUSED,
    "exited": virtevent.EVENT_LIFECYCLE_STOPPED,
    "dead": virtevent.EVENT_LIFECYCLE_STOPPED,
}

# If a server has several events within this time, Nova gets only the last one.
_HELD_SECONDS = 0.9
_QUIET_SECONDS = 10.0
_RECONNECT_SECONDS = 2.0


class Held:
    """The last transition of each server until it is due; not thread-safe."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._held: dict[str, tuple[float, int]] = {}

    def add(self, instance_uuid: str, transition: int, now: float) -> None:
        """Hold a transition. It replaces the server's held transition and is due at its time."""
        due, _ = self._held.get(instance_uuid, (now + self._seconds, 0))
        self._held[instance_uuid] = (due, transition)

    def seconds_left(self, now: float) -> float | None:
        """Return the seconds until the next transition is due; None if no transition is held."""
        return max(0.0, min(self._held.values())[0] - now) if self._held else None

    def take_due(self, now: float) -> list[tuple[str, int]]:
        """Return the transitions that are due, and remove them."""
        due = {uuid: held[1] for uuid, held in self._held.items() if held[0] <= now}
        for uuid in due:
            del self._held[uuid]
        return list(due.items())


class EventSource(Protocol):
    """The part of the engine's client that ``Events`` uses."""

    def watch_events(
        self, label: str, actions: Iterable[str], since_ns: int, quiet: float
    ) -> Iterator[ContainerEvent]:
        """Yield the events of containers with a label until ``quiet`` seconds pass without one."""

    def within(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        """Fail each request in the block that takes longer than ``seconds``."""

    def inspect_container(self, container: str) -> ContainerDetail:
        """Return the details of a container by name or id."""


class Events:
    """Two threads: one reads the engine's events, the other calls Nova, which may be slow.

    :param emit: takes each lifecycle event; ``ComputeDriver.emit_event``
    :param killed: takes the UUID of each server with a process that was killed out of memory
    :param answers: takes None if the engine answers, and otherwise the reason
    :param rebooted: takes the UUID of each server that ended with a reboot from inside; Nova gets
        no event of its end
    :param gone: returns those of the servers that Nova has deleted or has on another host
    """

    def __init__(
        self,
        engine: EventSource,
        listing: ServerList,
        emit: Callable[[virtevent.LifecycleEvent], None],
        killed: Callable[[str], None],
        answers: Callable[[str | None], None],
        rebooted: Callable[[str], None],
        gone: Callable[[Collection[str]], Set[str]],
    ) -> None:
        self._engine = engine
        self._listing = listing
        self._emit = emit
        self._killed = killed
        self._answers = answers
        self._rebooted = rebooted
        self._gone = gone
        # The servers whose deletion before the start is in the queue, or held.
        self._deleted_before: set[str] = set()
        self._stopped = threading.Event()
        self._started_ns = 0
        self._queue: queue.SimpleQueue[tuple[str, int] | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Start the threads; events from now on are reported, and earlier deletions."""
        self._started_ns = time.time_ns()
        for work in (self._read, self._report):
            # Daemon threads do not delay the end of nova-compute.
            threading.Thread(target=work, name=f"docker-events{work.__name__}", daemon=True).start()

    def stop(self) -> None:
        """Report no further events."""
        self._stopped.set()
        self._queue.put(None)

    def _read(self) -> None:
        # The engine stores the deletions that it reported while nova-compute did not run.
        since = 0
        while not self._stopped.is_set():
            try:
                for event in self._engine.watch_events(
                    naming.SERVER_FILTER,
                    (*TRANSITIONS, "oom"),
                    since,
                    _QUIET_SECONDS,
                ):
                    if self._stopped.is_set():
                        return
                    if event.time_ns >= self._started_ns:
                        self._handle(event)
                    else:
                        self._handle_earlier(event)
                    since = event.time_ns + 1
                continue
            except exception.EngineUnavailable:
                pass
            except exception.EngineError as error:
                LOG.warning("Failed to read the engine's events: %s", error)
                # A repeated request with the same time would fail again.
                since = time.time_ns()
            # oslo.log adds the exception that is handled to each warning, so none is handled here.
            self._reconnect()

    def _reconnect(self) -> None:
        """Wait until the engine answers, then report each server's state, as events may be lost."""
        while not self._stopped.wait(_RECONNECT_SECONDS):
            try:
                found = self._listing.servers()
            except exception.EngineUnavailable as error:
                self._answers(str(error))
                continue
            except exception.EngineError:
                continue
            self._answers(None)
            LOG.info("Reporting the states of %d servers after a loss of events", len(found))
            for uuid, server in found.items():
                if servers.has_rebooted(server):
                    self._rebooted(uuid)
                elif server.status in _STATES:
                    self._queue.put((uuid, _STATES[server.status]))
            return

    def _handle_earlier(self, event: ContainerEvent) -> None:
        """Report the deletion of a container before the start of nova-compute.

        Nova reads the states of the other servers when it starts.
        """
        if not naming.owned(event.name, event.attributes):
            return
        if event.action == "destroy":
            # The engine has stored the deletions of Nova's own requests, too.
            self._deleted_before.add(event.attributes[naming.LABEL_UUID])
            self._handle(event)
        elif event.action == "start":
            self._listing.note_created(event.attributes[naming.LABEL_UUID])

    def _handle(self, event: ContainerEvent) -> None:
        if not naming.owned(event.name, event.attributes):
            return
        uuid = event.attributes[naming.LABEL_UUID]
        if event.action == "oom":
            LOG.warning("The kernel killed a process: out of memory", instance_uuid=uuid)
            self._killed(uuid)
            return
        if event.action == "die" and self._has_rebooted(event.name, uuid):
            self._rebooted(uuid)
            return
        if event.action == "destroy":
            if event.attributes.get(naming.LABEL_RESCUE) == "1":
                # The server's own container exists under another name.
                return
            self._listing.note_deleted(uuid)
        self._queue.put((uuid, TRANSITIONS[event.action]))

    def _has_rebooted(self, name: str, uuid: str) -> bool:
        """Log the end of a server. Return True if it ended with a reboot from inside."""
        # An image's label replaces the event's attribute of the same name, such as exitCode. The
        # engine lists the status only after the event, but an inspection waits for it.
        code: int | None = None
        reboots = False
        try:
            with contextlib.suppress(exception.ContainerNotFound), self._engine.within(PATIENCE):
                found = self._engine.inspect_container(name)
                code, reboots = found.exit_code, servers.has_rebooted(found)
        except exception.EngineError as error:
            LOG.warning("Failed to read the exit status: %s", error, instance_uuid=uuid)
        status = "unknown" if code is None else code
        LOG.info("The first process ended with exit status %s", status, instance_uuid=uuid)
        return reboots

    def _report(self) -> None:
        held = Held(_HELD_SECONDS)
        while True:
            with contextlib.suppress(queue.Empty):
                taken = self._queue.get(timeout=held.seconds_left(time.monotonic()))
                if taken is None:
                    return
                held.add(*taken, time.monotonic())
            due = held.take_due(time.monotonic())
            try:
                found = self._listing.servers() if due else {}
            except (exception.EngineUnavailable, exception.EngineError):
                # Nova would ask the engine for each server's state, and log an error for each.
                self._stopped.wait(_RECONNECT_SECONDS)
                for uuid, transition in due:
                    held.add(uuid, transition, time.monotonic())
                continue
            before = self._deleted_before.intersection(uuid for uuid, _ in due)
            self._deleted_before -= before
            gone = self._gone(before) if before else frozenset()
            for uuid, transition in due:
                if uuid in gone:
                    continue
                if transition != virtevent.EVENT_LIFECYCLE_STOPPED or self._has_stopped(
                    found.get(uuid), uuid
                ):
                    self._emit(virtevent.LifecycleEvent(uuid, transition))

    def _has_stopped(self, server: Container | None, uuid: str) -> bool:
        """Return False if a server runs again or is being started.

        The engine lists a container as ended while it starts it. It locks the container meanwhile,
        so an inspection waits for the end of the start, which has an event of its own.
        """
        if server is None or not servers.has_ended(server):
            return server is None
        try:
            with self._engine.within(PATIENCE):
                return servers.has_ended(self._engine.inspect_container(server.id))
        except exception.ContainerNotFound:
            return True
        except (exception.EngineUnavailable, exception.EngineError) as error:
            LOG.warning("Failed to check that the server stopped: %s", error, instance_uuid=uuid)
            return False
