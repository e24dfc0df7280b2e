# SPDX-License-Identifier: Apache-2.0
"""Incidents of an instance, such as a process killed out of memory, in the instance's action log.

The instance's owner can list the actions. Because an action has only a name and a time, the name of
the process and the kernel's messages are in the log of ``novadocker-exporter``.
"""

import queue
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import oslo_messaging
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from oslo_log import log as logging

from novadocker.state_files import incident_socket

LOG = logging.getLogger(__name__)

# A tenant can cause any number of incidents, and each one is a row of Nova's database.
_AGAIN_SECONDS = 600.0
_MOST_REMEMBERED = 10_000


class IncidentListener:
    """A thread that receives the exporter's incidents; the exporter may be absent.

    :param state_path: nova-compute's ``state_path``, with the socket
    :param add: takes the kind of each incident and the instance's UUID
    """

    def __init__(self, state_path: Path, add: Callable[[str, str], None]) -> None:
        self._state_path = state_path
        self._add = add
        self._listening: socket.socket | None = None
        self._stopped = False

    def start(self) -> None:
        """Start the thread; if the socket cannot be created, only log a warning."""
        try:
            self._listening = incident_socket.listen(self._state_path)
        except OSError as error:
            LOG.warning("Failed to listen for the incidents of novadocker-exporter: %s", error)
            return
        # A daemon thread does not delay the end of nova-compute.
        threading.Thread(
            target=self._run, args=(self._listening,), name="docker-incidents", daemon=True
        ).start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped = True
        if self._listening:
            # The shutdown wakes the thread, and the thread closes the socket.
            self._listening.shutdown(socket.SHUT_RDWR)

    def _run(self, listening: socket.socket) -> None:
        with listening:
            while not self._stopped:
                datagram = listening.recv(incident_socket.LARGEST)
                if told := incident_socket.parse(datagram):
                    self._add(*told)


class IncidentActions:
    """A thread that records incidents by the conductor, which may be slow; ``add`` is thread-safe.

    :param clock: returns seconds
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._told: dict[tuple[str, str], float] = {}
        self._queue: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Start the thread."""
        # A daemon thread does not delay the end of nova-compute.
        threading.Thread(target=self._run, name="docker-actions", daemon=True).start()

    def stop(self) -> None:
        """Stop the thread."""
        self._queue.put(None)

    def add(self, kind: str, instance_uuid: str) -> None:
        """Record an incident, unless the instance had one of this kind within ten minutes.

        :param kind: the action's name
        """
        incident, now = (kind, instance_uuid), self._clock()
        with self._lock:
            if incident in self._told and now < self._told[incident] + _AGAIN_SECONDS:
                return
            if len(self._told) >= _MOST_REMEMBERED:
                self._told.clear()
            self._told[incident] = now
        self._queue.put(incident)

    def _run(self) -> None:
        while (incident := self._queue.get()) is not None:
            kind, instance_uuid = incident
            try:
                record(kind, instance_uuid)
            except (nova_exception.NovaException, oslo_messaging.MessagingException) as error:
                LOG.warning(
                    "Failed to record action %s: %s", kind, error, instance_uuid=instance_uuid
                )


def record(kind: str, instance_uuid: str) -> None:
    """Record an incident in the instance's action log, without a user's request.

    :raises nova.exception.NovaException: Nova refuses the action
    :raises oslo_messaging.MessagingException: the conductor does not answer
    """
    context = nova_context.get_admin_context()
    objects.InstanceAction.action_start(context, instance_uuid, kind, want_result=False)
    objects.InstanceAction.action_finish(context, instance_uuid, want_result=False)
