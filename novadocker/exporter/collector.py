# SPDX-License-Identifier: Apache-2.0
"""What a scrape tells, gathered."""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.registry import Collector

from novadocker.exporter import host, metrics, tree
from novadocker.exporter.identity import Identities
from novadocker.exporter.labels import KnownLabels


@dataclass(frozen=True)
class Places:
    """Where things are on a host.

    :ivar root: where /proc, /sys and /run are
    :ivar data_root: the engine's
    :ivar engine: the engine's socket
    """

    root: Path = Path("/")
    data_root: Path = Path("/var/lib/docker")
    engine: str = "/run/docker.sock"


class HostCollector(Collector):
    """Walks the control groups once for each scrape; safe to share between threads.

    :param kept_files: how many files of control groups may stay open, until ``close``
    """

    def __init__(self, places: Places, kept_files: int = 0) -> None:
        self._places = places
        self._tree = tree.Tree(places.root, kept_files)
        self._lock = threading.Lock()
        self._identities = Identities(places.data_root / "containers")

    def describe(self) -> list[Metric]:
        """Return nothing: to register must not walk."""
        return []

    def close(self) -> None:
        """Close what is kept open."""
        self._tree.close()

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the servers and of the host."""
        with self._lock:
            samples = list(self._samples())
            uuids = self._uuids()
        yield from metrics.server_metrics(samples)
        yield from self._host_metrics(len(samples), uuids)

    def _samples(self) -> Iterator[tuple[KnownLabels, tree.Sample]]:
        found = dict(self._tree.containers())
        self._tree.keep(set(found.values()))
        for container, path in found.items():
            labels = self._identities.find(container)
            # one that is removed at this moment has no sample any more
            if labels and (sample := self._tree.sample(path)):
                yield labels, sample

    def _host_metrics(self, servers: int, uuids: set[str]) -> Iterator[Metric]:
        places = self._places
        yield metrics.gauge("servers", "Servers that run.", servers)
        yield from metrics.shared_metrics(host.read_shared(places.root))
        if storage := host.read_storage(places.data_root):
            yield from metrics.storage_metrics(storage)
        seconds = host.ping_engine(places.engine)
        yield metrics.gauge("engine_up", "Whether the engine answers.", int(seconds is not None))
        yield metrics.gauge("engine_ping_seconds", "Time until the engine answered.", seconds)
        leaked = host.namespaces_without_container(uuids, places.root / "run/netns")
        yield metrics.gauge("leaked_namespaces", "Network namespaces without a container.", leaked)

    def _uuids(self) -> set[str]:
        """Return the instances that have a container, and forget the containers that are gone."""
        names = set()
        with suppress(FileNotFoundError):
            names = set(os.listdir(self._places.data_root / "containers"))
        self._identities.keep(names)
        return {found["uuid"] for name in names if (found := self._identities.find(name))}
