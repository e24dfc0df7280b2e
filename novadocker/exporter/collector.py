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

from novadocker.exporter import files, host, metrics, parsing, tree
from novadocker.exporter.identity import Identities, Server
from novadocker.exporter.probes import Probes
from novadocker.exporter.watch import Watch


@dataclass(frozen=True)
class Places:
    """Where things are on a host.

    :ivar root: where /proc, /sys and /run are
    :ivar data_root: the engine's
    :ivar engine: the engine's socket
    :ivar loads: the folder of the driver's files of load averages
    """

    root: Path = Path("/")
    data_root: Path = Path("/var/lib/docker")
    engine: str = "/run/docker.sock"
    loads: Path = Path("/var/lib/nova/loads")


class HostCollector(Collector):
    """Walks the control groups once for each scrape; safe to share between threads.

    :param probes: what is known of the programs that servers depend on
    :param kept_files: how many files of control groups may stay open, until ``close``
    """

    def __init__(self, places: Places, probes: Probes | None = None, kept_files: int = 0) -> None:
        self._places = places
        self._tree = tree.Tree(places.root, kept_files)
        self._probes = probes or Probes({})
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
            servers = self._servers()
            seen = list(self._seen(servers))
        yield from metrics.server_metrics(seen)
        uuids = {server.labels["uuid"] for server in servers.values()}
        yield from self._host_metrics(len(seen), uuids)

    def _servers(self) -> dict[str, Server]:
        """Return the servers that have a container, by its id; running or not."""
        names = set()
        with suppress(FileNotFoundError):
            names = set(os.listdir(self._places.data_root / "containers"))
        self._identities.keep(names)
        return {name: found for name in names if (found := self._identities.find(name))}

    def _seen(self, servers: dict[str, Server]) -> Iterator[metrics.Seen]:
        found = dict(self._tree.containers())
        self._tree.keep(set(found.values()))
        for container, path in found.items():
            server = servers.get(container)
            # one that is removed at this moment has no sample any more
            if server and (sample := self._tree.sample(path)):
                loads = files.read(f"{self._places.loads}/{server.labels['uuid']}")
                yield metrics.Seen(
                    labels=server.labels,
                    sample=sample,
                    started_at=server.started_at,
                    console_bytes=self._identities.console_bytes(container),
                    loads=parsing.load_averages(loads),
                )

    def _host_metrics(self, servers: int, uuids: set[str]) -> Iterator[Metric]:
        places = self._places
        yield metrics.gauge("servers", "Servers that run.", servers)
        yield from metrics.shared_metrics(host.read_shared(places.root))
        if storage := host.read_storage(places.data_root):
            yield from metrics.storage_metrics(storage)
        seconds = host.ping_engine(places.engine)
        yield metrics.gauge("engine_up", "Whether the engine answers.", int(seconds is not None))
        yield metrics.gauge("engine_ping_seconds", "Time until the engine answered.", seconds)
        yield metrics.process_metric(self._probes.up())
        yield metrics.gauge("log_bytes", "Size of /var/log.", host.log_bytes(places.root))
        leaked = host.namespaces_without_container(uuids, places.root / "run/netns")
        yield metrics.gauge("leaked_namespaces", "Network namespaces without a container.", leaked)


class WatchCollector(Collector):
    """Tells what happened to servers."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of what happened, and of the kernel's log."""
        yield from metrics.incident_metrics(self._watch.totals(), self._watch.lost_lines())
