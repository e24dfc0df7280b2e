# SPDX-License-Identifier: Apache-2.0
"""What happened to a server, and how often it is told."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from novadocker.exporter.labels import KnownLabels
from novadocker.state_files import incident_socket

LOG = logging.getLogger(__name__)

OOM_KILL = incident_socket.OOM_KILL
PIDS_LIMIT = incident_socket.PIDS_LIMIT
TABLE_FULL = incident_socket.TABLE_FULL
KERNEL_LINE = "kernel_line"
KINDS = (OOM_KILL, PIDS_LIMIT, TABLE_FULL, KERNEL_LINE)

_AGAIN_SECONDS = 10.0
# for the kernel's line that names the process, which comes after the count
_PATIENCE_SECONDS = 0.2


@dataclass(frozen=True)
class Incident:
    """Something that happened to a server.

    :ivar kind: one of KINDS
    :ivar count: how often since it was told the last time
    :ivar process: that was killed, or of which the server has most; empty where unknown
    :ivar lines: the last ones of the kernel's about the server
    """

    kind: str
    labels: KnownLabels
    count: int
    process: str = ""
    lines: tuple[str, ...] = ()


def log(incident: Incident) -> None:
    """Write an incident as one line of JSON: a tenant chose some of its words."""
    fields = {
        "event": incident.kind,
        "uuid": incident.labels["uuid"],
        "project": incident.labels["project"],
        "name": incident.labels["name"],
        "count": incident.count,
        "process": incident.process,
        "kernel": incident.lines,
    }
    LOG.warning("%s", json.dumps(fields))


def tell(state_path: Path, incident: Incident) -> None:
    """Log an incident, and tell nova-compute if it records such; it need not be there.

    :param state_path: nova-compute's
    """
    log(incident)
    if incident.kind in incident_socket.TOLD:
        try:
            incident_socket.tell(state_path, incident.kind, incident.labels["uuid"])
        except OSError as error:
            LOG.info("nova-compute is not told of it: %s", error)


class Pending:
    """What is to be told of one server: the first time at once, then not more often than so."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._since: dict[str, float] = {}
        self._told: dict[str, float] = {}

    def add(self, kind: str, count: int, now: float) -> None:
        """Take something that happened."""
        self._counts[kind] = self._counts.get(kind, 0) + count
        self._since.setdefault(kind, now)

    def seconds_left(self, now: float, patient: bool) -> float | None:
        """Return for how long nothing is due; None while there is nothing."""
        return min(
            (max(0.0, self._due(kind, patient) - now) for kind in self._counts), default=None
        )

    def take_due(self, now: float, patient: bool) -> Iterator[tuple[str, int]]:
        """Yield kinds and counts that are due, and hold them no longer.

        :param patient: whether the process that was killed may yet be known
        """
        for kind in list(self._counts):
            if self._due(kind, patient) <= now:
                self._told[kind] = now
                del self._since[kind]
                yield kind, self._counts.pop(kind)

    def has(self, kind: str) -> bool:
        """Say whether something of a kind is to be told."""
        return kind in self._counts

    def take_all(self) -> Iterator[tuple[str, int]]:
        """Yield all kinds and counts, and hold them no longer."""
        while self._counts:
            kind, count = self._counts.popitem()
            del self._since[kind]
            yield kind, count

    def _due(self, kind: str, patient: bool) -> float:
        wait = _PATIENCE_SECONDS if patient and kind == OOM_KILL else 0.0
        again = self._told[kind] + _AGAIN_SECONDS if kind in self._told else 0.0
        return max(self._since[kind] + wait, again)
