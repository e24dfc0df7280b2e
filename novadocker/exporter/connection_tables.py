# SPDX-License-Identifier: Apache-2.0
"""Detection of instances whose connection tracking table is full, so that packets are dropped.

The tables are read when the kernel logs that a table is full. They are also read at an interval,
because the kernel limits the rate of that message.
"""

from collections.abc import Collection
from pathlib import Path

from novadocker.exporter import files, incidents, parsing
from novadocker.exporter.tree import Tree
from novadocker.exporter.watched import Watched
from novadocker.linux.threads import Failures

_EVERY_SECONDS = 10.0
# The counter of dropped packets has other causes, too, so it counts only if the table is nearly
# full. Entries live for half a minute at least, so the table is still nearly full at the next read.
_NEARLY_FULL = 0.9


class ConnectionTables:
    """The connection tracking tables of all instances; not safe to share between threads.

    :param proc: path of /proc
    """

    def __init__(self, proc: Path, tree: Tree) -> None:
        self._proc = proc
        self._tree = tree
        self._is_one_full = False
        self._look_at = 0.0
        self._failures = Failures("Failed to read the connection tracking table of control group")

    def note_full(self) -> None:
        """Note that the kernel logged a full table, of any network namespace."""
        self._is_one_full = True

    def begin(self, watched: Watched) -> None:
        """Record the packets dropped before this program's start, which are not reported."""
        refused = parsing.dropped_connections(self._statistics(watched.path)) or 0
        watched.counts[incidents.TABLE_FULL] = refused

    def look(self, servers: Collection[Watched], now: float) -> None:
        """Add the newly dropped packets to each instance.

        Does nothing if the kernel logged no full table and the interval has not passed.
        """
        if not self._is_one_full and now < self._look_at:
            return
        limit = parsing.number(files.read(f"{self._proc}/sys/net/netfilter/nf_conntrack_max"))
        self._failures.keep(watched.path for watched in servers)
        for watched in servers:
            with self._failures.of(watched.path):
                self._look_at_one(watched, limit, now)
        self._is_one_full = False
        self._look_at = now + _EVERY_SECONDS

    def _look_at_one(self, watched: Watched, limit: int | None, now: float) -> None:
        statistics = self._statistics(watched.path)
        refused = parsing.dropped_connections(statistics) or 0
        tracked = parsing.tracked_connections(statistics) or 0
        is_nearly_full = limit is not None and tracked >= limit * _NEARLY_FULL
        if self._is_one_full or is_nearly_full:
            known = watched.counts.get(incidents.TABLE_FULL, 0)
            watched.add(incidents.TABLE_FULL, refused - known, now)
        watched.counts[incidents.TABLE_FULL] = refused

    def _statistics(self, path: str) -> str | None:
        process = self._tree.process(path)
        return files.read(f"{self._proc}/{process}/net/stat/nf_conntrack")
