# SPDX-License-Identifier: Apache-2.0
"""The deletion of containers of failed builds, at once or when the engine answers again."""

import threading
from collections.abc import Callable

from oslo_log import log as logging

from novadocker import exception
from novadocker.virt.docker.containers.pending import FAILURES, Pending
from novadocker.virt.docker.containers.protocols import ContainerEngine
from novadocker.virt.docker.engine.connection import PATIENCE

LOG = logging.getLogger(__name__)

_FAILURE = "Failed for now to clean up after the failed build of container"


class AbandonedContainers:
    """The containers of failed builds.

    Nova forgets the host of a failed build, so Nova does not delete these containers. After a
    restart of nova-compute, Nova's ``running_deleted_instance_action`` deletes them.
    """

    def __init__(self, engine: ContainerEngine) -> None:
        self._engine = engine
        self._created = Pending(self._remove, _FAILURE)
        self._perhaps_created = Pending(self._remove_unstarted, _FAILURE)
        self._lock = threading.Lock()
        self._afterwards: dict[str, Callable[[], None]] = {}

    def remove(self, container_id: str, afterwards: Callable[[], None]) -> None:
        """Delete a container of a failed build, or leave it to ``sweep`` after a failure.

        :param afterwards: called when the container is deleted; ``sweep`` repeats it if it fails
        """
        with self._lock:
            self._afterwards[container_id] = afterwards
        try:
            self._remove(container_id)
        except (exception.EngineUnavailable, *FAILURES) as error:
            # An exception would replace the fault of the build.
            LOG.warning("%s %s: %s", _FAILURE, container_id, error)
            self._created.add(container_id)

    def suspect(self, name: str) -> None:
        """Leave a container to ``sweep`` whose creation the engine did not answer."""
        self._perhaps_created.add(name)

    def sweep(self) -> None:
        """Delete the containers that ``remove`` could not delete, and the suspects.

        :raises EngineUnavailable: the engine does not answer
        """
        with self._engine.within(PATIENCE):
            self._created.sweep()
            self._perhaps_created.sweep()

    def _remove(self, container_id: str) -> None:
        self._engine.remove_container(container_id)
        with self._lock:
            afterwards = self._afterwards[container_id]
        afterwards()
        with self._lock:
            del self._afterwards[container_id]

    def _remove_unstarted(self, name: str) -> None:
        found = self._engine.inspect_container(name)
        # Any other status means that the container has run, so the lost request did not create it.
        if found.status == "created":
            self._engine.remove_container(found.id)
