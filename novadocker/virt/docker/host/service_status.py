# SPDX-License-Identifier: Apache-2.0
"""The status of this host's service nova-compute: disabled while the engine does not answer.

As Nova's libvirt driver does it, a reason with a fixed prefix marks a service that was disabled
automatically. A service that an operator disabled has another reason, and stays as it is.
"""

from __future__ import annotations

import threading
from typing import Any

import oslo_messaging
from keystoneauth1 import exceptions as keystone
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from oslo_log import log as logging

LOG = logging.getLogger(__name__)

PREFIX = "AUTO: "
REASON = f"{PREFIX}the Docker engine of the host does not answer"

_AGAIN_SECONDS = 30.0


class ServiceStatus:
    """Logs when the engine stops or begins to answer, and sets the status in a thread.

    The thread is needed because the conductor may be slow. ``report`` may be called from any
    thread.

    :param virtapi: Nova's ``ComputeVirtAPI``
    """

    def __init__(self, virtapi: Any) -> None:
        self._virtapi = virtapi
        self._host = ""
        self._lock = threading.Lock()
        self._answers: bool | None = None
        self._wake = threading.Event()
        self._stopped = False

    def start(self, host: str) -> None:
        """Start the thread.

        :param host: the name of the host in Nova
        """
        self._host = host
        # A daemon thread does not delay the end of nova-compute.
        threading.Thread(target=self._run, name="docker-service-status", daemon=True).start()

    def stop(self) -> None:
        """Stop the thread. The status stays as it is."""
        self._stopped = True
        self._wake.set()

    def report(self, problem: str | None) -> None:
        """Report whether the engine answers. Does nothing if that was reported before.

        :param problem: why it does not answer; None if it answers
        """
        answers = problem is None
        with self._lock:
            before, self._answers = self._answers, answers
        if before == answers:
            return
        if not answers:
            LOG.warning("Disabling the service until the engine answers: %s", problem)
        elif before is not None:
            LOG.warning("The Docker engine answers again; enabling the service")
        self._wake.set()

    def _run(self) -> None:
        pending = False
        while True:
            self._wake.wait(_AGAIN_SECONDS if pending else None)
            self._wake.clear()
            if self._stopped:
                return
            with self._lock:
                answers = self._answers
            try:
                set_enabled(self._virtapi, self._host, answers is True)
                pending = False
            except (
                nova_exception.NovaException,
                oslo_messaging.MessagingException,
                keystone.ClientException,
                # Nova's cache of providers is empty for a moment after a conflict in Placement.
                ValueError,
            ) as error:
                LOG.warning("Failed to set the status of the service: %s", error)
                pending = True


def set_enabled(virtapi: Any, host: str, enabled: bool) -> None:
    """Enable or disable a host's service in Nova, unless an operator has disabled it. Idempotent.

    Does nothing if the service does not exist yet.

    :raises NovaException: the database or Placement refuses
    :raises MessagingException: the conductor does not answer
    :raises ClientException: Placement does not answer
    :raises ValueError: Nova reads the providers of this host anew at this moment
    """
    context = nova_context.get_admin_context()
    try:
        service = objects.Service.get_by_compute_host(context, host)
    except nova_exception.NotFound:
        return
    if service.disabled != enabled:
        return
    if service.disabled and not (service.disabled_reason or "").startswith(PREFIX):
        return
    # Because the record tells whether there is something to do, the record is the last change.
    virtapi.update_compute_provider_status(context, service.compute_node.uuid, enabled=enabled)
    service.disabled = not enabled
    service.disabled_reason = None if enabled else REASON
    service.save()
