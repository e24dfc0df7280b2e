# SPDX-License-Identifier: Apache-2.0
"""The counters as Prometheus's metrics."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from novadocker.exporter import host, tree
from novadocker.exporter.identity import LABELS, Identities, Labels
from novadocker.exporter.tree import Sample

Value = float | int | None

# name without its "_total" if it counts, help, and the field of Sample
_GAUGES = (
    ("cpu_limit_cores", "CPUs that the quota allows.", "cpu_limit_cores"),
    ("memory_usage_bytes", "Memory in use, with the cache of files.", "memory_usage"),
    ("memory_working_set_bytes", "Usage less inactive_file.", "memory_working_set"),
    (
        "memory_unreclaimable_bytes",
        "Usage less inactive_file and slab_reclaimable.",
        "memory_unreclaimable",
    ),
    ("memory_limit_bytes", "Memory limit.", "memory_limit"),
    ("pids", "Processes and threads.", "pids"),
    ("pids_limit", "Limit of processes and threads.", "pids_limit"),
    ("conntrack_entries", "Tracked connections of its own namespace.", "tracked_connections"),
)
_COUNTERS = (
    ("cpu_seconds", "CPU time.", "cpu_seconds"),
    ("cpu_periods", "Periods of the CPU quota.", "cpu_periods"),
    ("cpu_throttled_periods", "Periods that used up the quota.", "cpu_throttled_periods"),
    ("cpu_throttled_seconds", "Time it was held back.", "cpu_throttled_seconds"),
    ("oom_kills", "Processes killed for want of memory.", "oom_kills"),
    ("pids_limit_hits", "Forks refused for the limit.", "pids_limit_hits"),
)
_DISK_COUNTERS = (
    ("disk_read_bytes", "Bytes read from a disk.", "read_bytes"),
    ("disk_written_bytes", "Bytes written to a disk.", "written_bytes"),
    ("disk_reads", "Requests to read.", "reads"),
    ("disk_writes", "Requests to write.", "writes"),
)
_PORT_COUNTERS = (
    ("network_receive_bytes", "Bytes the server received.", "received_bytes"),
    ("network_receive_packets", "Packets the server received.", "received_packets"),
    ("network_receive_errors", "Errors at receiving.", "receive_errors"),
    ("network_receive_drops", "Packets dropped at receiving.", "receive_drops"),
    ("network_transmit_bytes", "Bytes the server sent.", "sent_bytes"),
    ("network_transmit_packets", "Packets the server sent.", "sent_packets"),
    ("network_transmit_errors", "Errors at sending.", "send_errors"),
    ("network_transmit_drops", "Packets dropped at sending.", "send_drops"),
)
_STALLS = "Time that some or all of its tasks waited for a resource."


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
    """Walks the control groups once for each scrape."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._tree = tree.Tree(places.root)
        self._identities = Identities(places.data_root / "containers")

    def describe(self) -> list[Metric]:
        """Return nothing: to register must not walk."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the servers and of the host."""
        samples = list(self._samples())
        yield from _server_metrics(samples)
        yield from self._host_metrics(len(samples))

    def _samples(self) -> Iterator[tuple[Labels, Sample]]:
        for container, path in self._tree.containers():
            labels = self._identities.find(container)
            # one that is removed at this moment has no sample any more
            if labels and (sample := self._tree.sample(path)):
                yield labels, sample

    def _host_metrics(self, servers: int) -> Iterator[Metric]:
        places = self._places
        yield _single("servers", "Servers that run.", servers)
        yield from _shared_metrics(host.read_shared(places.root))
        if storage := host.read_storage(places.data_root):
            yield _single("storage_size_bytes", "Size of the data root.", storage.size_bytes)
            yield _single("storage_free_bytes", "Free in the data root.", storage.free_bytes)
            yield _single("storage_inodes", "Inodes of the data root.", storage.inodes)
            yield _single("storage_free_inodes", "Inodes that are free.", storage.free_inodes)
        seconds = host.ping_engine(places.engine)
        yield _single("engine_up", "Whether the engine answers.", int(seconds is not None))
        yield _single("engine_ping_seconds", "Time until the engine answered.", seconds)
        leaked = host.namespaces_without_container(self._uuids(), places.root / "run/netns")
        yield _single("leaked_namespaces", "Network namespaces without a container.", leaked)

    def _uuids(self) -> set[str]:
        """Return the instances that have a container, and forget the containers that are gone."""
        names = set()
        with suppress(FileNotFoundError):
            names = set(os.listdir(self._places.data_root / "containers"))
        self._identities.keep(names)
        return {found[0] for name in names if (found := self._identities.find(name))}


def _server_metrics(samples: list[tuple[Labels, Sample]]) -> Iterator[Metric]:
    for name, text, field in _GAUGES:
        gauge = GaugeMetricFamily(f"novadocker_server_{name}", text, labels=LABELS)
        yield _filled(gauge, [(labels, getattr(sample, field)) for labels, sample in samples])
    for name, text, field in _COUNTERS:
        counter = CounterMetricFamily(f"novadocker_server_{name}", text, labels=LABELS)
        yield _filled(counter, [(labels, getattr(sample, field)) for labels, sample in samples])
    for source, table in (("disks", _DISK_COUNTERS), ("ports", _PORT_COUNTERS)):
        devices = [
            ((*labels, device), counters)
            for labels, sample in samples
            for device, counters in getattr(sample, source).items()
        ]
        for name, text, field in table:
            counter = CounterMetricFamily(
                f"novadocker_server_{name}", text, labels=(*LABELS, "device")
            )
            yield _filled(counter, [(key, getattr(found, field)) for key, found in devices])
    stalls = CounterMetricFamily(
        "novadocker_server_stalled_seconds", _STALLS, labels=(*LABELS, "resource", "kind")
    )
    yield _filled(
        stalls,
        [
            ((*labels, *key), seconds)
            for labels, sample in samples
            for key, seconds in sample.stalled.items()
        ],
    )


def _shared_metrics(shared: host.Shared) -> Iterator[Metric]:
    memory = shared.memory.get
    yield _single("threads", "Processes and threads.", shared.threads)
    yield _single("threads_limit", "Limit of pid_max and threads-max.", shared.threads_limit)
    yield _single("conntrack_entries", "Tracked connections.", shared.tracked_connections)
    yield _single("conntrack_limit", "Their limit.", shared.tracked_connections_limit)
    dropped = CounterMetricFamily(
        "novadocker_host_conntrack_drops", "Packets that found the connection table full."
    )
    yield _filled(dropped, [((), shared.dropped_connections)])
    yield _single("memory_bytes", "Memory of the host.", memory("MemTotal"))
    yield _single("slab_bytes", "Memory of the kernel's objects.", memory("Slab"))
    yield _single("slab_reclaimable_bytes", "Slab that can be freed.", memory("SReclaimable"))
    yield _single("dirty_bytes", "Cache that waits to be written.", memory("Dirty"))
    yield _single("writeback_bytes", "Cache that is being written.", memory("Writeback"))


def _single(name: str, text: str, value: Value) -> Metric:
    return _filled(GaugeMetricFamily(f"novadocker_host_{name}", text, labels=()), [((), value)])


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily, values: list[tuple[tuple[str, ...], Value]]
) -> Metric:
    for labels, value in values:
        if value is not None:
            family.add_metric(labels, value)
    return family
