# SPDX-License-Identifier: Apache-2.0
"""Live resizes of a server that counts, streams and answers, and the gaps that peers see.

``make bench-resize``; docs/benchmarks.rst explains each figure.
"""

import contextlib
import dataclasses
import functools
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# A script's own directory is in sys.path, but the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# tests selects the threading mode of Nova, which must precede any import of eventlet.
import tests  # noqa: F401, I001

import docker

from benchmarks import figures, program, watcher, worker
from devcloud.network import ip
from devcloud.settings import Host, Settings, load_settings
from devcloud.steps import StepFailed, step
from devcloud.switch import vsctl

IMAGE = "debian"
BRIDGE = "br-bench"
FAR_ADDRESS = "192.0.2.1/24"
MIB = 1 << 20

QUIET, RESIZED = "left alone", "resized"
ROUND = 10
PAUSE_SECONDS = 0.1

# A resize from one to the other changes all limits.
FLAVORS: Sequence[Mapping[str, Any]] = (
    {"vcpus": 1, "memory_mb": 256, "extra_specs": {}},
    {
        "vcpus": 2,
        "memory_mb": 512,
        "extra_specs": {
            "quota:cpu_shares": "2048",
            "quota:disk_write_bytes_sec": str(50 * MIB),
            "quota:disk_read_iops_sec": "500",
            "quota:vif_inbound_average": "20000",
            "quota:vif_outbound_average": "20000",
            "docker:pids_limit": "500",
        },
    },
)

NETWORK_KILOBYTES = 5000
DISK_BYTES = 20 * MIB
DISK_IOPS = 200
RATED: Mapping[str, Any] = {
    "vcpus": 1,
    "memory_mb": 256,
    "extra_specs": {
        "quota:disk_write_bytes_sec": str(DISK_BYTES),
        "quota:disk_read_bytes_sec": str(DISK_BYTES),
        "quota:disk_write_iops_sec": str(DISK_IOPS),
        "quota:vif_inbound_average": str(NETWORK_KILOBYTES),
        "quota:vif_outbound_average": str(NETWORK_KILOBYTES),
    },
}
RATE_SECONDS = 5.0

DRIVER_MS = 60.0
GAP_MS = 5.0
RATE_SHARE = 0.05


GAPS = {"count_gap": "counting", "stream_gap": "TCP stream", "ping_gap": "ping"}

# Columns of /proc/net/dev.
_RECEIVED, _SENT = 0, 8

Seen = dict[str, list[watcher.Seen]]
Rates = dict[str, list[float]]


@contextlib.contextmanager
def bridge(settings: Settings, host: Host) -> Iterator[None]:
    """Create an Open vSwitch bridge with an address, which Neutron does not manage."""
    try:
        vsctl(
            settings,
            host,
            *("--may-exist", "add-br", BRIDGE),
            *("--", "set", "bridge", BRIDGE, "datapath_type=netdev"),
        )
        ip("-n", host.namespace, "address", "replace", FAR_ADDRESS, "dev", BRIDGE)
        ip("-n", host.namespace, "link", "set", BRIDGE, "up")
        yield
    finally:
        vsctl(settings, host, "--if-exists", "del-br", BRIDGE)


def watch_resizes(
    servers: worker.Worker, seen_by: watcher.Watcher, rounds: int
) -> tuple[list[worker.Boot], Seen]:
    """Resize the server in rounds, each followed by the same time without resizes."""
    resizes: list[worker.Boot] = []
    seen: Seen = {QUIET: [], RESIZED: []}
    for _ in range(rounds):
        begin = time.time()
        for number in range(ROUND):
            resizes.append(servers.resize(FLAVORS[(number + 1) % len(FLAVORS)]))
            time.sleep(PAUSE_SECONDS)
        end = time.time()
        seen[RESIZED].append(seen_by.seen(begin, end))
        quiet = time.time()
        time.sleep(end - begin)
        seen[QUIET].append(seen_by.seen(quiet, time.time()))
    return resizes, seen


def measure_rates(
    engine: docker.APIClient, container: str, host: Host, address: str
) -> dict[str, list[float]]:
    """Return, by kind of limit, the ratio of the measured to the configured rate."""
    pid = engine.inspect_container(container)["State"]["Pid"]
    network, seconds = NETWORK_KILOBYTES * 1000, RATE_SECONDS
    to_server, from_server = (
        watcher.rate(
            host.namespace, address, port, functools.partial(counted, pid, column), seconds
        )
        for port, column in ((watcher.SINK, _RECEIVED), (watcher.SOURCE, _SENT))
    )
    megabytes, blocks = int(DISK_BYTES * seconds) >> 20, int(DISK_IOPS * seconds)
    file = "/benchmark"
    written = dd(engine, container, f"of={file}", f"count={megabytes}", "oflag=direct", "bs=1M")
    read = dd(engine, container, f"if={file}", f"count={megabytes}", "iflag=direct", "bs=1M")
    small = dd(engine, container, f"of={file}", f"count={blocks}", "oflag=direct", "bs=4k")
    return {
        "network, to the server": [to_server / network],
        "network, from the server": [from_server / network],
        "disk, bytes written": [written / DISK_BYTES],
        "disk, bytes read": [read / DISK_BYTES],
        "disk, blocks written": [small / 4096 / DISK_IOPS],
    }


def counted(pid: int, column: int) -> int:
    """Return the bytes of frames that passed a server's first device."""
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, values = line.partition(":")
        if name.strip() == "eth0":
            return int(values.split()[column])
    raise StepFailed("The server has no device eth0", "openstack server show")


def dd(engine: docker.APIClient, container: str, *options: str) -> float:
    """Run ``dd`` in a server and return the bytes per second, with direct I/O to bypass buffers."""
    # An end that the options omit is a device without I/O.
    ends = {"if": "/dev/zero", "of": "/dev/null", **dict(option.split("=") for option in options)}
    command = ["dd", *(f"{name}={value}" for name, value in ends.items())]
    call = engine.exec_create(container, command, environment={"LC_ALL": "C"})["Id"]
    shown = engine.exec_start(call).decode()
    found = re.search(r"(\d+) bytes .* copied, ([\d.e-]+) s", shown)
    if found is None:
        raise StepFailed("dd in the server failed", shown.strip())
    return int(found[1]) / float(found[2])


def measure(settings: Settings, rounds: int) -> tuple[list[worker.Boot], Seen, Rates]:
    """Run all measurements, then delete everything that they created."""
    host = settings.hosts[0]
    record = worker.image_on(settings, host, IMAGE)
    with (
        contextlib.closing(docker.APIClient(f"unix://{settings.engine_socket(host)}")) as engine,
        bridge(settings, host),
        worker.started(settings, host, record, BRIDGE) as servers,
    ):
        server = servers.spawn()
        watcher.serve(engine, server.container)
        with (
            step(f"{rounds} rounds of {ROUND} resizes"),
            watcher.watching(host.namespace, server.address) as seen_by,
        ):
            # The first resize changes more than the later ones.
            servers.resize(FLAVORS[0])
            resizes, seen = watch_resizes(servers, seen_by, rounds)
        with step("rates"):
            servers.resize(RATED)
            rates = measure_rates(engine, server.container, host, server.address)
    return resizes, seen, rates


def report(resizes: Sequence[worker.Boot], seen: Seen, rates: Rates) -> program.Report:
    """Return the report of the results."""
    driver = figures.summarize(resize.seconds for resize in resizes)
    tables = [figures.table("Driver time of a live resize", "ms", {"": driver}, 1000)]
    targets = [
        figures.Target(
            "ms of the driver for a live resize, median", driver.median * 1000, DRIVER_MS
        )
    ]
    for field, title in GAPS.items():
        rows = {
            name: figures.summarize(getattr(found, field) for found in times)
            for name, times in seen.items()
        }
        tables.append(figures.table(f"Longest gap of a round: {title}", "ms", rows, 1000))
        longer = (rows[RESIZED].maximum - rows[QUIET].maximum) * 1000
        targets.append(figures.Target(f"ms, {title}: longest gap over the noise", longer, GAP_MS))
    lost = sum(found.lost for found in seen[RESIZED])
    targets.append(figures.Target("packets lost", lost, 0))
    shares = figures.summaries(rates)
    tables.append(figures.table("Rate reached of the rate configured", "", shares))
    targets += [
        figures.Target(f"rate off by, {name}", abs(share.median - 1), RATE_SHARE)
        for name, share in shares.items()
    ]
    parts = figures.median_parts([resize.parts for resize in resizes])
    samples = {
        "resizes": [dataclasses.asdict(resize) for resize in resizes],
        "seen": {
            name: [dataclasses.asdict(found) for found in times] for name, times in seen.items()
        },
        "rates": rates,
    }
    text = "\n\n".join([*tables, figures.parts_table({"live resize": parts})])
    return program.Report(text, targets, samples)


def main() -> int:
    """Run the benchmark; return its exit status."""
    parser = program.parser(__doc__, "resize")
    parser.add_argument(
        "--rounds", type=int, default=10, help=f"rounds of {ROUND} resizes (default: 10)"
    )
    arguments = parser.parse_args()
    return program.run(arguments.json, lambda: report(*measure(load_settings(), arguments.rounds)))


if __name__ == "__main__":
    sys.exit(main())
