# SPDX-License-Identifier: Apache-2.0
"""The engine's word for a container's state, as Nova's power state of a server."""

from __future__ import annotations

from collections.abc import Mapping

from nova.compute import power_state

from novadocker.virt.docker.model import Container, ContainerDetail

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
