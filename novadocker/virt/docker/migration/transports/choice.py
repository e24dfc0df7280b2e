# SPDX-License-Identifier: Apache-2.0
"""The list of the transports: a new transport is one file beside this one, and one line here."""

from __future__ import annotations

from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.migration.transports.direct import Direct
from novadocker.virt.docker.migration.transports.registry import ThroughRegistry
from novadocker.virt.docker.migration.transports.transport import Kind, Transport

TRANSPORTS: tuple[Kind, ...] = (ThroughRegistry, Direct)
"""All transports; a move takes the first that is configured. A host receives with each."""


def choose(engine: Engine, instance_uuid: str) -> Transport:
    """Return the transport that the operator's options choose."""
    kind = next(kind for kind in TRANSPORTS if kind.is_configured())
    return kind(engine, instance_uuid)


def clear_leftovers(engine: Engine) -> None:
    """Delete what moves left between the hosts because nova-compute died. Idempotent."""
    for kind in TRANSPORTS:
        kind.clear_leftovers(engine)
