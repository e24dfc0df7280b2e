# SPDX-License-Identifier: Apache-2.0
"""The list of servers on this engine, and the state of a server in Nova's terms."""

import signal
import threading
import time
from collections.abc import Mapping

from nova.compute import power_state

from novadocker import naming
from novadocker.virt.docker.containers.protocols import ContainerEngine
from novadocker.virt.docker.model import Container, ContainerDetail

# Nova asks for one server after the other when it compares power states.
_FRESH_SECONDS = 5.0
_MOST_DELETED = 10_000


class ServerList:
    """The servers by instance UUID, in any state, without other containers; thread-safe."""

    def __init__(self, engine: ContainerEngine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._servers: Mapping[str, Container] = {}
        self._read_at = -_FRESH_SECONDS
        self._deleted: dict[str, None] = {}

    def servers(self) -> Mapping[str, Container]:
        """Return the servers as the engine lists them now.

        :raises EngineUnavailable: the engine does not answer
        """
        with self._lock:
            return self._read()

    def recent_servers(self) -> Mapping[str, Container]:
        """Return the last list of servers if it is younger than 5 s, otherwise a new one.

        :raises EngineUnavailable: the engine does not answer
        """
        with self._lock:
            if time.monotonic() - self._read_at < _FRESH_SECONDS:
                return self._servers
            return self._read()

    def note_deleted(self, instance_uuid: str) -> None:
        """Note that the engine reported the deletion of an instance's container."""
        with self._lock:
            self._deleted[instance_uuid] = None
            if len(self._deleted) > _MOST_DELETED:
                del self._deleted[next(iter(self._deleted))]

    def note_created(self, instance_uuid: str) -> None:
        """Note that an instance has a new container after the one that was deleted."""
        with self._lock:
            self._deleted.pop(instance_uuid, None)

    def was_deleted(self, instance_uuid: str) -> bool:
        """Return True if the engine reported the deletion of an instance's container.

        The instance may have a new container that is not listed yet.
        """
        with self._lock:
            return instance_uuid in self._deleted

    def _read(self) -> Mapping[str, Container]:
        started = time.monotonic()
        containers = self._engine.list_containers(naming.SERVER_FILTER)
        self._servers = {
            container.labels[naming.LABEL_UUID]: container
            for container in containers
            if naming.owned(container.name, container.labels)
        }
        self._read_at = started
        for instance_uuid in self._servers:
            self._deleted.pop(instance_uuid, None)
        return self._servers


REBOOT_STATUS = 128 + signal.SIGHUP
"""The exit status of a first process whose server reboots itself.

reboot(2) in a PID namespace ends the namespace's first process as if by SIGHUP, and by SIGINT for a
halt or a power-off (kernel/pid_namespace.c, reboot_pid_ns).
"""

POWER_STATES: Mapping[str, int] = {
    "created": power_state.SHUTDOWN,
    "running": power_state.RUNNING,
    "restarting": power_state.RUNNING,
    "paused": power_state.PAUSED,
    "exited": power_state.SHUTDOWN,
    "removing": power_state.SHUTDOWN,
    "dead": power_state.CRASHED,
}
"""Nova's power state by the engine's status of a container."""


def power_state_of(server: Container | ContainerDetail) -> int:
    """Return Nova's power state of a server; NOSTATE for a status that is not in the table."""
    return POWER_STATES.get(server.status, power_state.NOSTATE)


def has_ended(server: Container | ContainerDetail) -> bool:
    """Return True if a server has no process."""
    return power_state_of(server) in (power_state.SHUTDOWN, power_state.CRASHED)


def has_rebooted(server: Container | ContainerDetail) -> bool:
    """Return True if a server's last run ended with a reboot from inside."""
    return has_ended(server) and server.exit_code == REBOOT_STATUS


def is_silent(server: Container | ContainerDetail) -> bool:
    """Return True if the kernel must not answer for a server.

    The kernel would answer pings to the addresses of stopped and of frozen servers.
    """
    return has_ended(server) or power_state_of(server) == power_state.PAUSED
