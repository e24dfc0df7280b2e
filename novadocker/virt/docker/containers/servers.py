# SPDX-License-Identifier: Apache-2.0
"""The servers on this engine: one filtered list answers many questions."""

import threading
import time
from collections.abc import Mapping

from nova.compute import power_state

from novadocker import naming
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.model import Container, ContainerDetail

# Nova asks for every server in turn when it compares power states
_FRESH_SECONDS = 5.0


class Listing:
    """Servers by instance uuid, in any state; foreign containers are not among them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._servers: Mapping[str, Container] = {}
        self._read_at = -_FRESH_SECONDS

    def servers(self) -> Mapping[str, Container]:
        """Ask the engine.

        :raises EngineUnavailable: the engine does not answer
        """
        with self._lock:
            return self._read()

    def recent_servers(self) -> Mapping[str, Container]:
        """Ask the engine unless that was done within the last seconds."""
        with self._lock:
            if time.monotonic() - self._read_at < _FRESH_SECONDS:
                return self._servers
            return self._read()

    def _read(self) -> Mapping[str, Container]:
        started = time.monotonic()
        containers = self._engine.list_containers(f"{naming.LABEL_SCHEMA}={naming.SCHEMA}")
        self._servers = {
            container.labels[naming.LABEL_UUID]: container
            for container in containers
            if naming.owned(container.name, container.labels)
        }
        self._read_at = started
        return self._servers


POWER_STATES: Mapping[str, int] = {
    "created": power_state.SHUTDOWN,
    "running": power_state.RUNNING,
    "restarting": power_state.RUNNING,
    "paused": power_state.PAUSED,
    "exited": power_state.SHUTDOWN,
    "removing": power_state.SHUTDOWN,
    "dead": power_state.CRASHED,
}


def power_state_of(server: Container | ContainerDetail) -> int:
    """Return Nova's number for a server's state; NOSTATE for a word that is not known."""
    return POWER_STATES.get(server.status, power_state.NOSTATE)


def has_ended(server: Container | ContainerDetail) -> bool:
    """Tell whether a server has no process."""
    return power_state_of(server) in (power_state.SHUTDOWN, power_state.CRASHED)


def is_silent(server: Container | ContainerDetail) -> bool:
    """Tell whether nobody may answer for a server: the kernel would, for frozen processes too."""
    return has_ended(server) or power_state_of(server) == power_state.PAUSED
