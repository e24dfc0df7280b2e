# SPDX-License-Identifier: Apache-2.0
"""The state of a watched instance: its counters and its unreported incidents."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from novadocker.exporter import files, parsing
from novadocker.exporter.incidents import OOM_KILL, PIDS_LIMIT, Incident, Pending
from novadocker.exporter.labels import KnownLabels

REPORTED_LINES = 20
"""Number of lines of the kernel's log in the report of an incident."""


@dataclass
class Totals:
    """The incidents of an instance since this program's start.

    The totals outlive the container's run, because an incident may end it.

    :ivar kinds: number of incidents by kind
    :ivar dropped_lines: number of lines of the kernel's log that the rate limit dropped
    """

    labels: KnownLabels
    kinds: Counter[str] = field(default_factory=Counter)
    dropped_lines: int = 0


@dataclass
class Watched:
    """A running instance.

    :ivar path: path of its control group
    :ivar descriptors: file descriptors of the files with counters, by kind of incident
    :ivar counts: last value of each counter, by kind of incident
    :ivar lines: last lines of the kernel's log about it
    :ivar victim: name of the killed process that was not reported yet
    """

    totals: Totals
    path: str
    descriptors: dict[str, int]
    counts: dict[str, int] = field(default_factory=dict)
    pending: Pending = field(default_factory=Pending)
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=REPORTED_LINES))
    victim: str = ""

    def add(self, kind: str, count: int, now: float) -> None:
        """Add incidents. Does nothing if the count is 0, or negative after a counter's reset."""
        if count > 0:
            self.totals.kinds[kind] += count
            self.pending.add(kind, count, now)

    def incident(self, kind: str, count: int, process: str = "") -> Incident:
        """Create the report of an incident; for an out-of-memory kill with the known victim."""
        if kind == OOM_KILL:
            process, self.victim = self.victim, ""
        return Incident(kind, self.totals.labels, count, process, tuple(self.lines))

    def last_incidents(self, now: float) -> Iterator[Incident]:
        """Yield the unreported incidents when the instance stops.

        A logged victim counts as a kill, because the control group may have been deleted before the
        counter of kills was read.
        """
        if self.victim and not self.pending.has(OOM_KILL):
            self.add(OOM_KILL, 1, now)
        for kind, count in self.pending.take_all():
            yield self.incident(kind, count)

    def read_counts(self) -> dict[str, int] | None:
        """Return the counters by kind of incident; None if the control group no longer exists."""
        try:
            texts = {kind: files.read_again(found) for kind, found in self.descriptors.items()}
        except OSError:
            return None
        return {
            OOM_KILL: parsing.flat(texts.get(OOM_KILL)).get("oom_kill", 0),
            PIDS_LIMIT: parsing.flat(texts.get(PIDS_LIMIT)).get("max", 0),
        }
