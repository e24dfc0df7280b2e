# SPDX-License-Identifier: Apache-2.0
"""The engine's events, told to Nova as lifecycle events."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping

from nova.virt import event as virtevent
from oslo_log import log as logging

from novadocker import exception, naming
from novadocker.virt.docker.containers.servers import Listing
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.model import ContainerEvent

LOG = logging.getLogger(__name__)

# the engine's word for what happened: Nova's
TRANSITIONS: Mapping[str, int] = {
    "start": virtevent.EVENT_LIFECYCLE_STARTED,
    "die": virtevent.EVENT_LIFECYCLE_STOPPED,
    "pause": virtevent.EVENT_LIFECYCLE_PAUSED,
    "unpause": virtevent.EVENT_LIFECYCLE_RESUMED,
}

# the engine's word for a state: the transition that leads to it
_STATES: Mapping[str, int] = {
    "running": virtevent.EVENT_LIFECYCLE_STARTED,
    "paused": virtevent.EVENT_LIFECYCLE_PAUSED,
    "exited": virtevent.EVENT_LIFECYCLE_STOPPED,
    "dead": virtevent.EVENT_LIFECYCLE_STOPPED,
}

# what is over within this time, a restart above all, reaches Nova as its last event only
_HELD_SECONDS = 0.9
_QUIET_SECONDS = 10.0
_RECONNECT_SECONDS = 2.0


class Held:
    """Each server's last transition, until it is due; not safe to share between threads."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._held: dict[str, tuple[float, int]] = {}

    def add(self, instance_uuid: str, transition: int, now: float) -> None:
        """Hold a transition in the place of the server's former one, which was due earlier."""
        due, _ = self._held.get(instance_uuid, (now + self._seconds, 0))
        self._held[instance_uuid] = (due, transition)

    def seconds_left(self, now: float) -> float | None:
        """Return for how long nothing is due; None while nothing is held."""
        return max(0.0, min(self._held.values())[0] - now) if self._held else None

    def take_due(self, now: float) -> list[tuple[str, int]]:
        """Return what is due, and hold it no longer."""
        due = {uuid: held[1] for uuid, held in self._held.items() if held[0] <= now}
        for uuid in due:
            del self._held[uuid]
        return list(due.items())


class Events:
    """Two threads: one reads the engine's stream, the other tells Nova, which takes its time.

    :param emit: takes each lifecycle event; ``ComputeDriver.emit_event``
    :param killed: takes each server of which a process was killed for want of memory
    """

    def __init__(
        self,
        engine: Engine,
        listing: Listing,
        emit: Callable[[virtevent.LifecycleEvent], None],
        killed: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._listing = listing
        self._emit = emit
        self._killed = killed
        self._stopped = threading.Event()
        self._queue: queue.SimpleQueue[tuple[str, int] | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Begin with what happens from now on."""
        for work in (self._read, self._tell):
            # daemons: neither may keep a stopping nova-compute
            threading.Thread(target=work, name=f"docker-events{work.__name__}", daemon=True).start()

    def stop(self) -> None:
        """Tell Nova nothing more."""
        self._stopped.set()
        self._queue.put(None)

    def _read(self) -> None:
        since = time.time_ns()
        while not self._stopped.is_set():
            try:
                for event in self._engine.watch_events(
                    f"{naming.LABEL_SCHEMA}={naming.SCHEMA}",
                    (*TRANSITIONS, "oom"),
                    since,
                    _QUIET_SECONDS,
                ):
                    self._take(event)
                    since = event.time_ns + 1
            except exception.EngineUnavailable as error:
                LOG.warning("Lost the engine's events: %s", error)
                self._return()
            except exception.EngineError as error:
                LOG.warning("The engine's events can't be read: %s", error)
                # it would say the same again
                since = time.time_ns()
                self._return()

    def _return(self) -> None:
        """Wait until the engine answers, then tell every server's state: events may be lost."""
        while not self._stopped.wait(_RECONNECT_SECONDS):
            try:
                servers = self._listing.servers()
            except (exception.EngineUnavailable, exception.EngineError):
                continue
            LOG.info("The engine answers again; comparing the states of %d servers", len(servers))
            for uuid, server in servers.items():
                if server.status in _STATES:
                    self._queue.put((uuid, _STATES[server.status]))
            return

    def _take(self, event: ContainerEvent) -> None:
        if not naming.owned(event.name, event.attributes):
            return
        uuid = event.attributes[naming.LABEL_UUID]
        if event.action == "oom":
            LOG.warning("[instance: %s] The kernel killed a process: out of memory", uuid)
            self._killed(uuid)
        else:
            if event.action == "die":
                code = event.attributes.get("exitCode", "unknown")
                LOG.info("[instance: %s] Its first process ended, exit code %s", uuid, code)
            self._queue.put((uuid, TRANSITIONS[event.action]))

    def _tell(self) -> None:
        held = Held(_HELD_SECONDS)
        while True:
            with contextlib.suppress(queue.Empty):
                taken = self._queue.get(timeout=held.seconds_left(time.monotonic()))
                if taken is None:
                    return
                held.add(*taken, time.monotonic())
            for uuid, transition in held.take_due(time.monotonic()):
                self._emit(virtevent.LifecycleEvent(uuid, transition))
