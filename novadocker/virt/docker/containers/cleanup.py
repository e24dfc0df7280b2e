# SPDX-License-Identifier: Apache-2.0
"""Containers of failed builds that could not be removed, mostly as the engine was away."""

import threading
from collections.abc import Callable

from oslo_log import log as logging

from novadocker import exception
from novadocker.virt.docker.engine.client import Engine

LOG = logging.getLogger(__name__)


class AbandonedContainers:
    """Removes what a failed build made, at once or when the engine is back.

    Nova forgets the host of a build that it gave up, so nobody else would ask for it. What a
    restart of nova-compute forgets is left to Nova's ``running_deleted_instance_action``.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._made: set[str] = set()
        self._perhaps_made: set[str] = set()

    def remove(self, container_id: str) -> None:
        """Remove a container of a failed build, later if the engine can't now."""
        try:
            self._engine.remove_container(container_id)
        except (exception.EngineUnavailable, exception.EngineError) as error:
            LOG.warning("Container %s of a failed build is removed later: %s", container_id, error)
            with self._lock:
                self._made.add(container_id)

    def suspect(self, name: str) -> None:
        """Remember a name that the engine was asked for and did not answer about."""
        with self._lock:
            self._perhaps_made.add(name)

    def sweep(self) -> None:
        """Remove what is left; what the engine refuses or does not answer stays for the next time.

        :raises EngineUnavailable: the engine is away again
        """
        with self._lock:
            self._clear(self._made, self._engine.remove_container)
            self._clear(self._perhaps_made, self._remove_unstarted)

    @staticmethod
    def _clear(containers: set[str], remove: Callable[[str], None]) -> None:
        for container in list(containers):
            # one that can't be removed must not stand in the way of the host's next builds
            try:
                remove(container)
            except exception.EngineError as error:
                LOG.warning("Container %s of a failed build stays: %s", container, error)
            else:
                containers.discard(container)

    def _remove_unstarted(self, name: str) -> None:
        try:
            found = self._engine.inspect_container(name)
        except exception.ContainerNotFound:
            return
        # anything else has run, so it is not what the lost request made
        if found.status == "created":
            self._engine.remove_container(found.id)
