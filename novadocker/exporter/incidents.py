# SPDX-License-Identifier: Apache-2.0
"""Incidents of instances, and the rate at which they are reported."""

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
# The kernel logs the name of a killed process after it counts the kill, so the report waits.
_PATIENCE_SECONDS = 0.2


@dataclass(frozen=True)
class Incident:
    """An incident of an instance.

    :ivar kind: one of KINDS
    :ivar count: number of occurrences since the last report
    :ivar process: name of the killed process, or of the process that the instance runs most often;
        empty if unknown
    :ivar lines: last lines of the kernel's log about the instance
    """

    kind: str
    labels: KnownLabels
    count: int
    process: str = ""
    lines: tuple[str, ...] = ()


def log(incident: Incident) -> None:
    """Log an incident as one line of JSON, because a tenant chose some of the names in it."""
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


def report(state_path: Path, incident: Incident) -> None:
    """Log an incident and send it to nova-compute if it is of a kind in ``TOLD``.

    nova-compute need not run.

    :param state_path: of nova-compute
    """
    log(incident)
    if incident.kind in incident_socket.TOLD:
        try:
            incident_socket.tell(state_path, incident.kind, incident.labels["uuid"])
        except OSError as error:
            LOG.info(
                "Failed to send incident %s of server %s to nova-compute: %s",
                incident.kind,
                incident.labels["uuid"],
                error,
            )


class Pending:
    """The unreported incidents of one instance.

    The first incident of a kind is due at once, the next ones at least ten seconds after the last
    report of that kind.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._since: dict[str, float] = {}
        self._reported: dict[str, float] = {}

    def add(self, kind: str, count: int, now: float) -> None:
        """Add occurrences of an incident."""
        self._counts[kind] = self._counts.get(kind, 0) + count
        self._since.setdefault(kind, now)

    def seconds_left(self, now: float, patient: bool) -> float | None:
        """Return the time until an incident is due; None if there is no unreported incident."""
        return min(
            (max(0.0, self._due(kind, patient) - now) for kind in self._counts), default=None
        )

    def take_due(self, now: float, patient: bool) -> Iterator[tuple[str, int]]:
        """Yield and remove the kinds and counts that are due.

        :param patient: whether to wait for the name of a killed process
        """
        for kind in list(self._counts):
            if self._due(kind, patient) <= now:
                self._reported[kind] = now
                del self._since[kind]
                yield kind, self._counts.pop(kind)

    def has(self, kind: str) -> bool:
        """Return True if there is an unreported incident of a kind."""
        return kind in self._counts

    def take_all(self) -> Iterator[tuple[str, int]]:
        """Yield and remove all kinds and counts."""
        while self._counts:
            kind, count = self._counts.popitem()
            del self._since[kind]
            yield kind, count

    def _due(self, kind: str, patient: bool) -> float:
        wait = _PATIENCE_SECONDS if patient and kind == OOM_KILL else 0.0
        again = self._reported[kind] + _AGAIN_SECONDS if kind in self._reported else 0.0
        return max(self._since[kind] + wait, again)
