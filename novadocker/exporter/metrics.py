# SPDX-License-Identifier: Apache-2.0
"""Conversion of counters to Prometheus's metrics. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import Metric
from prometheus_client.samples import Sample as Point

from novadocker.exporter.host import Shared, Storage
from novadocker.exporter.incidents import KINDS
from novadocker.exporter.labels import NONE, KnownLabels
from novadocker.exporter.leaks import Found
from novadocker.exporter.thinpool import Space
from novadocker.exporter.tree import Sample
from novadocker.exporter.watched import Totals
from novadocker.state_files.port_rates import PortRate

Value = float | int | None
Table = tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Seen:
    """The values of a running instance at a scrape.

    :ivar started_at: start in seconds since the epoch; None if unknown
    :ivar console_bytes: size of the log files of its console
    :ivar loads: load averages over 1, 5 and 15 minutes; None if unknown
    :ivar rates: rates of its ports by device
    """

    labels: KnownLabels
    sample: Sample
    started_at: float | None = None
    console_bytes: int = 0
    loads: tuple[float, float, float] | None = None
    rates: Mapping[str, PortRate] = field(default_factory=dict)


# Each row has the name (without "_total" for a counter), the help text and the field of Sample.
_GAUGES: Table = (
    ("cpu_limit_cores", "CPUs that the quota allows.", "cpu_limit_cores"),
    ("memory_usage_bytes", "Memory in use, including the page cache.", "memory_usage"),
    ("memory_working_set_bytes", "Usage less inactive_file.", "memory_working_set"),
    (
        "memory_unreclaimable_bytes",
        "Usage less inactive_file and slab_reclaimable.",
        "memory_unreclaimable",
    ),
    ("memory_limit_bytes", "Memory limit.", "memory_limit"),
    ("pids", "Processes and threads.", "pids"),
    ("pids_limit", "Limit of processes and threads.", "pids_limit"),
    ("conntrack_entries", "Tracked connections in its namespace.", "tracked_connections"),
)
_COUNTERS: Table = (
    ("cpu_seconds", "CPU time.", "cpu_seconds"),
    ("cpu_periods", "Periods of the CPU quota.", "cpu_periods"),
    ("cpu_throttled_periods", "Periods that used up the quota.", "cpu_throttled_periods"),
    ("cpu_throttled_seconds", "Time throttled by the CPU quota.", "cpu_throttled_seconds"),
    ("oom_kills", "Processes killed because memory ran out.", "oom_kills"),
    ("pids_limit_hits", "Forks refused because of pids_limit.", "pids_limit_hits"),
)
_DISK_COUNTERS: Table = (
    ("disk_read_bytes", "Bytes read from a disk.", "read_bytes"),
    ("disk_written_bytes", "Bytes written to a disk.", "written_bytes"),
    ("disk_reads", "Read requests to a disk.", "reads"),
    ("disk_writes", "Write requests to a disk.", "writes"),
)
_PORT_COUNTERS: Table = (
    ("network_receive_bytes", "Bytes the server received.", "received_bytes"),
    ("network_receive_packets", "Packets the server received.", "received_packets"),
    ("network_receive_errors", "Errors on receive.", "receive_errors"),
    ("network_receive_drops", "Packets dropped on receive.", "receive_drops"),
    ("network_transmit_bytes", "Bytes the server sent.", "sent_bytes"),
    ("network_transmit_packets", "Packets the server sent.", "sent_packets"),
    ("network_transmit_errors", "Errors on transmit.", "send_errors"),
    ("network_transmit_drops", "Packets dropped on transmit.", "send_drops"),
)
_DISK_LIMITS: Table = (
    ("disk_read_limit_bytes_per_second", "Limit of bytes read.", "read_bytes"),
    ("disk_write_limit_bytes_per_second", "Limit of bytes written.", "written_bytes"),
    ("disk_read_limit_requests_per_second", "Limit of read requests.", "reads"),
    ("disk_write_limit_requests_per_second", "Limit of write requests.", "writes"),
)
_PORT_LIMITS: Table = (
    ("network_receive_limit_bytes_per_second", "Limit of bytes received.", "received"),
    ("network_transmit_limit_bytes_per_second", "Limit of bytes sent.", "sent"),
)
# Each row has the kind, the field of Sample with values by device, and the table of those values.
_DEVICE_TABLES = (
    ("counter", "disks", _DISK_COUNTERS),
    ("gauge", "disk_limits", _DISK_LIMITS),
    ("counter", "ports", _PORT_COUNTERS),
)
_STARTED = "Time of its last start."
_LOGGED = "Size of the log files of its console."
_STALLS = "Time that some or all of its tasks waited for a resource."


def server_metrics(servers: Sequence[Seen]) -> Iterator[Metric]:
    """Yield the metrics of all running instances."""
    for kind, table in (("gauge", _GAUGES), ("counter", _COUNTERS)):
        for name, text, attribute in table:
            values = ((seen.labels, getattr(seen.sample, attribute)) for seen in servers)
            yield _metric(f"novadocker_server_{name}", text, kind, values)
    for kind, source, table in _DEVICE_TABLES:
        yield from _device_metrics(
            kind, table, ((seen.labels, getattr(seen.sample, source)) for seen in servers)
        )
    yield from _device_metrics(
        "gauge", _PORT_LIMITS, ((seen.labels, seen.rates) for seen in servers)
    )
    stalls = (
        (seen.labels.with_(("resource", "kind"), key), seconds)
        for seen in servers
        for key, seconds in seen.sample.stalled.items()
    )
    yield _metric("novadocker_server_stalled_seconds", _STALLS, "counter", stalls)
    started = ((seen.labels, seen.started_at) for seen in servers)
    yield _metric("novadocker_server_start_time_seconds", _STARTED, "gauge", started)
    logged = ((seen.labels, seen.console_bytes) for seen in servers)
    yield _metric("novadocker_server_console_log_bytes", _LOGGED, "gauge", logged)
    for place, minutes in enumerate((1, 5, 15)):
        text = f"Threads that run or wait uninterruptibly, averaged over {minutes} min."
        loads = ((seen.labels, seen.loads[place] if seen.loads else None) for seen in servers)
        yield _metric(f"novadocker_server_load{minutes}", text, "gauge", loads)


def _device_metrics(
    kind: str, table: Table, servers: Iterable[tuple[KnownLabels, Mapping[str, object]]]
) -> Iterator[Metric]:
    devices = [
        (labels.with_(("device",), (device,)), counters)
        for labels, found in servers
        for device, counters in found.items()
    ]
    for name, text, attribute in table:
        values = ((labels, getattr(counters, attribute)) for labels, counters in devices)
        yield _metric(f"novadocker_server_{name}", text, kind, values)


def shared_metrics(shared: Shared) -> Iterator[Metric]:
    """Yield the metrics of the kernel's resources that all instances share."""
    memory = shared.memory.get
    yield gauge("threads", "Processes and threads.", shared.threads)
    yield gauge("threads_limit", "Lower one of pid_max and threads-max.", shared.threads_limit)
    yield gauge("conntrack_entries", "Tracked connections.", shared.tracked_connections)
    yield gauge(
        "conntrack_limit", "Limit of tracked connections.", shared.tracked_connections_limit
    )
    text = "Packets dropped because the connection tracking table was full."
    dropped = [(NONE, shared.dropped_connections)]
    yield _metric("novadocker_host_conntrack_drops", text, "counter", dropped)
    yield gauge("aio_requests", "Reserved requests of asynchronous I/O.", shared.aio_requests)
    yield gauge("aio_requests_limit", "Limit of aio_requests.", shared.aio_requests_limit)
    for name, text, pair in (
        ("open_files", "Open files.", shared.open_files),
        ("user_keys", "Keys of the user who is nearest to the limit.", shared.user_keys),
    ):
        used, most = pair or (None, None)
        yield gauge(name, text, used)
        yield gauge(f"{name}_limit", f"Limit of {name}.", most)
    yield gauge("memory_bytes", "Memory of the host.", memory("MemTotal"))
    yield gauge("slab_bytes", "Memory of the kernel's objects.", memory("Slab"))
    yield gauge("slab_reclaimable_bytes", "Slab that can be freed.", memory("SReclaimable"))
    yield gauge("dirty_bytes", "Page cache that waits to be written.", memory("Dirty"))
    yield gauge("writeback_bytes", "Page cache that is being written.", memory("Writeback"))


def user_metrics(shared: Shared, used: Mapping[str, int]) -> Iterator[Metric]:
    """Yield the metrics of limits that the kernel has for each user.

    :param used: the use by the user who uses most, by the names of ``state_files.user_budgets``
    """
    limits = shared.user_limits
    for name, text, values in (
        ("", "Use by the user who uses most.", {key: used.get(key) for key in limits}),
        # The kernel takes 0 for no limit.
        ("_limit", "Limit of user_budget.", {key: most or None for key, most in limits.items()}),
    ):
        yield _metric(
            f"novadocker_host_user_budget{name}",
            text,
            "gauge",
            ((NONE.with_(("budget",), (budget,)), value) for budget, value in values.items()),
        )


def storage_metrics(storage: Storage) -> Iterator[Metric]:
    """Yield the metrics of the data root's file system."""
    yield gauge("storage_size_bytes", "Size of the data root.", storage.size_bytes)
    yield gauge("storage_free_bytes", "Free in the data root.", storage.free_bytes)
    yield gauge("storage_inodes", "Inodes of the data root.", storage.inodes)
    yield gauge("storage_free_inodes", "Free inodes of the data root.", storage.free_inodes)


def pool_metrics(pool: Mapping[str, Space]) -> Iterator[Metric]:
    """Yield the metrics of the data root's thin pool."""

    def values(field: str) -> Iterator[tuple[KnownLabels, int]]:
        return (
            (NONE.with_(("kind",), (kind,)), getattr(space, field)) for kind, space in pool.items()
        )

    size, used = (
        "novadocker_host_storage_pool_size_bytes",
        "novadocker_host_storage_pool_used_bytes",
    )
    yield _metric(size, "Size of the thin pool, by kind.", "gauge", values("size_bytes"))
    yield _metric(used, "Use of the thin pool, by kind.", "gauge", values("used_bytes"))


def process_metric(up: Mapping[str, bool]) -> Metric:
    """Return the metric of the programs that instances depend on."""
    text = "Whether a program that servers depend on answers."
    values = ((NONE.with_(("process",), (name,)), int(good)) for name, good in up.items())
    return _metric("novadocker_host_process_up", text, "gauge", values)


def leak_metrics(found: Found) -> Iterator[Metric]:
    """Yield the metrics of objects that deleted instances left on the host."""
    text = "Objects that deleted servers left, by kind."
    values = ((NONE.with_(("kind",), (kind,)), count) for kind, count in found.leaked.items())
    yield _metric("novadocker_host_leaked_objects", text, "gauge", values)
    yield gauge("unused_images", "Images in the cache that no server uses.", found.unused_images)


def incident_metrics(totals: Sequence[Totals], lost_lines: int | None) -> Iterator[Metric]:
    """Yield the metrics of incidents of instances and of the kernel's log."""
    text = "Incidents of the server, by kind."
    # Each kind is exported from the start, because increase() ignores the first sample of a series.
    happened = (
        (found.labels.with_(("kind",), (kind,)), found.kinds.get(kind, 0))
        for found in totals
        for kind in KINDS
    )
    yield _metric("novadocker_server_incidents", text, "counter", happened)
    text = "Lines of the kernel's log about it that were dropped by the rate limit."
    dropped = ((found.labels, found.dropped_lines) for found in totals)
    yield _metric("novadocker_server_kernel_lines_dropped", text, "counter", dropped)
    text = "Lines of the kernel's log that were overwritten or skipped by the rate limit."
    yield _metric("novadocker_host_kernel_lines_lost", text, "counter", [(NONE, lost_lines)])


def gauge(name: str, text: str, value: Value) -> Metric:
    """Return a metric of the host, without a sample if ``value`` is None."""
    return _metric(f"novadocker_host_{name}", text, "gauge", [(NONE, value)])


def _metric(name: str, text: str, kind: str, values: Iterable[tuple[KnownLabels, Value]]) -> Metric:
    metric = Metric(name, text, kind)
    sample_name = f"{name}_total" if kind == "counter" else name
    metric.samples = [
        Point(sample_name, labels, value) for labels, value in values if value is not None
    ]
    return metric
