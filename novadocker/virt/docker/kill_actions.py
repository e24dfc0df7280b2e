# SPDX-License-Identifier: Apache-2.0
"""A process killed for want of memory as an action of its instance, which its owner can list.

The process and the kernel's lines are in the log of ``novadocker-exporter``: an action has a name
and a time.
"""

import queue
import threading
import time
from collections.abc import Callable

import oslo_messaging
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from oslo_log import log as logging

LOG = logging.getLogger(__name__)

ACTION = "oom_kill"

# a tenant can cause any number, and each is a row of Nova's database
_AGAIN_SECONDS = 600.0
_MOST_REMEMBERED = 10_000


class KillActions:
    """A thread that asks the conductor, which takes its time.

    :param clock: in seconds
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[str, float] = {}
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Begin to record."""
        # a daemon: it must not keep a stopping nova-compute
        threading.Thread(target=self._run, name="docker-kills", daemon=True).start()

    def stop(self) -> None:
        """Record no more."""
        self._queue.put(None)

    def add(self, instance_uuid: str) -> None:
        """Have a kill recorded, unless one of the server's was in the last ten minutes.

        Not safe to share between threads.
        """
        now = self._clock()
        if instance_uuid in self._told and now < self._told[instance_uuid] + _AGAIN_SECONDS:
            return
        if len(self._told) >= _MOST_REMEMBERED:
            self._told.clear()
        self._told[instance_uuid] = now
        self._queue.put(instance_uuid)

    def _run(self) -> None:
        while (instance_uuid := self._queue.get()) is not None:
            try:
                record(instance_uuid)
            except (nova_exception.NovaException, oslo_messaging.MessagingException) as error:
                LOG.warning("[instance: %s] A kill is not recorded: %s", instance_uuid, error)


def record(instance_uuid: str) -> None:
    """Record a kill in the instance's action log, as nobody's request.

    :raises nova.exception.NovaException: Nova does not take it
    :raises oslo_messaging.MessagingException: the conductor does not answer
    """
    context = nova_context.get_admin_context()
    objects.InstanceAction.action_start(context, instance_uuid, ACTION, want_result=False)
    objects.InstanceAction.action_finish(context, instance_uuid, want_result=False)
