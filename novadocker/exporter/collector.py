# SPDX-License-Identifier: Apache-2.0
"""The collectors that Prometheus's client library calls at each scrape."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.registry import Collector

from novadocker import engine_paths
from novadocker.exporter import files, host, metrics, tree
from novadocker.exporter.identity import Identities, Server
from novadocker.exporter.leaks import Search
from novadocker.exporter.thinpool import Space
from novadocker.exporter.watch import Watch
from novadocker.linux.threads import Failures
from novadocker.state_files import load_averages, port_rates, user_budgets
from novadocker.state_files.port_rates import PortRate


@dataclass(frozen=True)
class Places:
    """Paths on a host.

    :ivar root: directory that contains /proc, /sys and /run
    :ivar data_root: data root of the engine
    :ivar engine: socket of the engine
    :ivar state_path: of nova-compute; the driver writes load averages and port rates below it
    """

    root: Path = Path("/")
    data_root: Path = Path("/var/lib/docker")
    engine: str = "/run/docker.sock"
    state_path: Path = Path("/var/lib/nova")


@dataclass(frozen=True)
class Asked:
    """Functions that return answers which threads fetched before the scrape; empty by default.

    :ivar up: whether the programs that instances depend on answer, by name
    :ivar pool: size and use of the thin pool, by kind
    :ivar rates: the switch's limits of ports, by the name of the host end
    """

    up: Callable[[], Mapping[str, bool]] = dict
    pool: Callable[[], Mapping[str, Space]] = dict
    rates: Callable[[], Mapping[str, PortRate]] = dict


NOTHING = Asked()
_NO_RATE = PortRate(None, None)


class HostCollector(Collector):
    """The metrics of the host and of its running instances; safe to share between threads.

    Each scrape walks the control groups once.

    :param kept_files: how many files of control groups may stay open until ``close``
    """

    def __init__(self, places: Places, asked: Asked = NOTHING, kept_files: int = 0) -> None:
        self._places = places
        self._tree = tree.Tree(places.root, kept_files)
        self._asked = asked
        self._lock = threading.Lock()
        self._failures = Failures("Failed to read the counters of container")
        self._identities = Identities(engine_paths.containers(places.data_root))

    def close(self) -> None:
        """Close the files of control groups."""
        self._tree.close()

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the instances and of the host."""
        with self._lock:
            seen = list(self._seen(self._servers()))
        yield from metrics.server_metrics(seen)
        yield from self._host_metrics(len(seen))

    def _servers(self) -> dict[str, Server]:
        """Return the instances that have a container, running or not, by container id."""
        names = set()
        with suppress(FileNotFoundError):
            names = set(os.listdir(engine_paths.containers(self._places.data_root)))
        self._identities.keep(names)
        return {name: found for name in names if (found := self._identities.find(name))}

    def _seen(self, servers: dict[str, Server]) -> Iterator[metrics.Seen]:
        found = dict(self._tree.containers())
        self._tree.keep(set(found.values()))
        switched = self._asked.rates()
        self._failures.keep(found)
        for container, path in found.items():
            if server := servers.get(container):
                seen = None
                with self._failures.of(container):
                    seen = self._see(container, path, server, switched)
                if seen:
                    yield seen

    def _see(
        self, container: str, path: str, server: Server, switched: Mapping[str, PortRate]
    ) -> metrics.Seen | None:
        # A container that is deleted during the walk has no sample.
        if (sample := self._tree.sample(path)) is None:
            return None
        loads, rates = self._state_files(server.labels["uuid"])
        return metrics.Seen(
            labels=server.labels,
            sample=sample,
            started_at=server.started_at,
            console_bytes=self._identities.console_bytes(container),
            loads=load_averages.parse(loads),
            rates={
                device: port_rates.lower(port.rate, switched.get(port.host_device, _NO_RATE))
                for device, port in port_rates.parse(rates).items()
            },
        )

    def _state_files(self, uuid: str) -> tuple[str | None, str | None]:
        """Return the content of an instance's files of load averages and of port rates."""
        state_path = str(self._places.state_path)
        return (
            files.read(load_averages.path_of(state_path, uuid)),
            files.read(port_rates.path_of(state_path, uuid)),
        )

    def _host_metrics(self, servers: int) -> Iterator[Metric]:
        places = self._places
        yield metrics.gauge("servers", "Running servers.", servers)
        shared = host.read_shared(places.root)
        yield from metrics.shared_metrics(shared)
        yield from metrics.user_metrics(shared, user_budgets.read(places.state_path))
        if storage := host.read_storage(places.data_root):
            yield from metrics.storage_metrics(storage)
        yield from metrics.pool_metrics(self._asked.pool())
        seconds = host.ping_engine(places.engine)
        yield metrics.gauge("engine_up", "Whether the engine answers.", int(seconds is not None))
        yield metrics.gauge("engine_ping_seconds", "Response time of the engine.", seconds)
        yield metrics.process_metric(self._asked.up())
        yield metrics.gauge("log_bytes", "Size of /var/log.", host.log_bytes(places.root))


class LeakCollector(Collector):
    """The metrics of objects that deleted instances left on the host."""

    def __init__(self, search: Search) -> None:
        self._search = search

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the last search."""
        yield from metrics.leak_metrics(self._search.found())


class WatchCollector(Collector):
    """The metrics of incidents of instances."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of incidents and of the kernel's log."""
        yield from metrics.incident_metrics(self._watch.totals(), self._watch.lost_lines())
