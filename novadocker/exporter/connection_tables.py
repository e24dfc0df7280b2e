# SPDX-License-Identifier: Apache-2.0
"""Which servers' connections the kernel refuses, since their table of connections is full.

Tables are looked at when the kernel says that one is full, and now and then as it does not say so
each time.
"""

from collections.abc import Collection
from pathlib import Path

from novadocker.exporter import files, incidents, parsing
from novadocker.exporter.tree import Tree
from novadocker.exporter.watched import Watched

_EVERY_SECONDS = 10.0
# packets are dropped for other reasons, too; entries stay for half a minute at least
_NEARLY_FULL = 0.9


class ConnectionTables:
    """Looks at the tables of all servers; not safe to share between threads.

    :param proc: the folder /proc
    """

    def __init__(self, proc: Path, tree: Tree) -> None:
        self._proc = proc
        self._tree = tree
        self._is_one_full = False
        self._look_at = 0.0

    def say_full(self) -> None:
        """Take that the kernel says that one is full, in whichever namespace."""
        self._is_one_full = True

    def begin(self, watched: Watched) -> None:
        """Count what a server was refused before this program's start as known."""
        refused = parsing.dropped_connections(self._statistics(watched.path)) or 0
        watched.counts[incidents.TABLE_FULL] = refused

    def look(self, servers: Collection[Watched], now: float) -> None:
        """Tell each server what it was refused, if it is time to look."""
        if not self._is_one_full and now < self._look_at:
            return
        limit = parsing.number(files.read(f"{self._proc}/sys/net/netfilter/nf_conntrack_max"))
        for watched in servers:
            statistics = self._statistics(watched.path)
            refused = parsing.dropped_connections(statistics) or 0
            tracked = parsing.tracked_connections(statistics) or 0
            is_nearly_full = limit is not None and tracked >= limit * _NEARLY_FULL
            if self._is_one_full or is_nearly_full:
                known = watched.counts.get(incidents.TABLE_FULL, 0)
                watched.add(incidents.TABLE_FULL, refused - known, now)
            watched.counts[incidents.TABLE_FULL] = refused
        self._is_one_full = False
        self._look_at = now + _EVERY_SECONDS

    def _statistics(self, path: str) -> str | None:
        process = self._tree.process(path)
        return files.read(f"{self._proc}/{process}/net/stat/nf_conntrack")
