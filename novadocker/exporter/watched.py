# SPDX-License-Identifier: Apache-2.0
"""A server that is watched: what was counted of it, and what of that is to be told."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from novadocker.exporter import files, parsing
from novadocker.exporter.incidents import OOM_KILL, PIDS_LIMIT, Incident, Pending
from novadocker.exporter.labels import KnownLabels

LINES_TOLD = 20
"""How many of the kernel's last lines an incident is told with."""


@dataclass
class Totals:
    """What happened to a server since this program looks, while it was off as well.

    A server that ends of what happened would else take it along.

    :ivar kinds: how often, by kind of incident
    :ivar dropped_lines: of the kernel's, too many at a time to be kept
    """

    labels: KnownLabels
    kinds: Counter[str] = field(default_factory=Counter)
    dropped_lines: int = 0


@dataclass
class Watched:
    """A server that runs.

    :ivar path: of its control group
    :ivar descriptors: of the files with counters, by kind of incident
    :ivar counts: what was last read of each counter
    :ivar lines: the kernel's last ones about it
    :ivar victim: the process that was killed and not told yet
    """

    totals: Totals
    path: str
    descriptors: dict[str, int]
    counts: dict[str, int] = field(default_factory=dict)
    pending: Pending = field(default_factory=Pending)
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LINES_TOLD))
    victim: str = ""

    def add(self, kind: str, count: int, now: float) -> None:
        """Take what happened; a count of 0, or that of a counter that began anew, is nothing."""
        if count > 0:
            self.totals.kinds[kind] += count
            self.pending.add(kind, count, now)

    def incident(self, kind: str, count: int, process: str = "") -> Incident:
        """Return what is told; of a kill, the process that is known."""
        if kind == OOM_KILL:
            process, self.victim = self.victim, ""
        return Incident(kind, self.totals.labels, count, process, tuple(self.lines))

    def last_incidents(self, now: float) -> Iterator[Incident]:
        """Yield what is still to be told as the server ends.

        Its control group may be gone before the kill that ended it was counted.
        """
        if self.victim and not self.pending.has(OOM_KILL):
            self.add(OOM_KILL, 1, now)
        for kind, count in self.pending.take_all():
            yield self.incident(kind, count)

    def read_counts(self) -> dict[str, int] | None:
        """Return the counters, by kind of incident; None if the control group is gone."""
        try:
            texts = {kind: files.read_again(found) for kind, found in self.descriptors.items()}
        except OSError:
            return None
        return {
            OOM_KILL: parsing.flat(texts.get(OOM_KILL)).get("oom_kill", 0),
            PIDS_LIMIT: parsing.flat(texts.get(PIDS_LIMIT)).get("max", 0),
        }
