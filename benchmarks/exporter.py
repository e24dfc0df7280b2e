# SPDX-License-Identifier: Apache-2.0
"""CPU time of a scrape of the exporter, by the number of servers.

The control groups are a tree of plain files in the layout of version 1, so the figure includes all
but the kernel's own time for the counters. The benchmark fails if 200 servers take more than 50 ms.
"""

import json
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path

# A script's own directory is in sys.path, but the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from prometheus_client import CollectorRegistry

from benchmarks import figures, program
from novadocker.exporter import files, serving
from novadocker.exporter.collector import Asked, HostCollector, Places
from novadocker.state_files.port_rates import PortRate

_COUNTS = (50, 200, 500)
_TARGET_COUNT = 200
_TARGET_MILLISECONDS = 50.0
_SCRAPES = 15
_FILES = {
    "cpuacct/cpuacct.usage": "1500000000\n",
    "cpu/cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 2500000000\n",
    "cpu/cpu.cfs_quota_us": "150000\n",
    "cpu/cpu.cfs_period_us": "100000\n",
    "memory/memory.usage_in_bytes": "1000\n",
    "memory/memory.limit_in_bytes": "4096\n",
    "memory/memory.stat": "".join(f"total_counter_{number} {number}\n" for number in range(40)),
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    "pids/pids.current": "7\n",
    "pids/pids.max": "100\n",
    "pids/pids.events": "max 2\n",
    "pids/cgroup.procs": "42\n43\n",
    "blkio/blkio.throttle.io_service_bytes": "254:0 Read 512\n254:0 Write 1024\n",
    "blkio/blkio.throttle.io_serviced": "254:0 Read 1\n254:0 Write 2\n",
    "blkio/blkio.throttle.read_bps_device": "254:0 1048576\n",
    "blkio/blkio.throttle.write_bps_device": "254:0 1048576\n",
    "blkio/blkio.throttle.read_iops_device": "254:0 100\n",
    "blkio/blkio.throttle.write_iops_device": "254:0 100\n",
}
_NET_DEV = "  eth0: 1 1 1 1 0 0 0 0 1 1 1 1 0 0 0 0\n"


def measure() -> program.Report:
    """Scrape hosts with different numbers of servers."""
    samples, rows = {}, {}
    for count in _COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            _make_host(root, count)
            samples[count], series = _scrape(root, count)
            rows[f"{count} servers, {series} series"] = figures.summarize(samples[count])
    return program.Report(
        figures.table("CPU time of a scrape", "ms", rows, 1000),
        [
            figures.Target(
                f"ms of CPU time of a scrape, {_TARGET_COUNT} servers",
                statistics.median(samples[_TARGET_COUNT]) * 1000,
                _TARGET_MILLISECONDS,
            )
        ],
        {"cpu_seconds": samples},
    )


def _scrape(root: Path, count: int) -> tuple[list[float], int]:
    """Return the CPU seconds of each scrape, and its number of series."""
    registry = CollectorRegistry()
    places = Places(root, root / "data", str(root / "engine"), root / "state")
    switched = {f"tap{number}": PortRate(1_000_000, None) for number in range(count)}
    collector = HostCollector(places, Asked(rates=lambda: switched), files.most_kept())
    registry.register(collector)
    application = serving.make_application(registry)

    def scrape() -> bytes:
        request = {"REQUEST_METHOD": "GET", "PATH_INFO": serving.PATH}
        return b"".join(application(request, lambda _status, _headers: None))

    series = sum(not line.startswith(b"#") for line in scrape().splitlines())
    used = []
    for _ in range(_SCRAPES):
        begin = time.process_time()
        scrape()
        used.append(time.process_time() - begin)
    collector.close()
    return used, series


def _make_host(root: Path, count: int) -> None:
    _put(root / "proc/42/net/dev", _NET_DEV)
    for number in range(count):
        container = f"{number:064x}"
        for name, content in _FILES.items():
            controller, _, file = name.partition("/")
            _put(root / "sys/fs/cgroup" / controller / "docker" / container / file, content)
        instance = str(uuid.UUID(int=number))
        labels = {
            "org.openstack.nova.schema": "1",
            "org.openstack.nova.instance_uuid": instance,
            "org.openstack.nova.instance_name": f"instance-{number:08x}",
            "org.openstack.nova.project_id": "f" * 32,
            "org.openstack.nova.flavor": "m1.tiny",
        }
        stored = {
            "Name": f"/nova-{instance}",
            "Config": {"Labels": labels},
            "State": {"StartedAt": "2026-11-25T12:00:00.123456789Z"},
        }
        _put(root / "data/containers" / container / "config.v2.json", json.dumps(stored))
        _put(root / "data/containers" / container / f"{container}-json.log", "{}\n")
        _put(root / "state/loads" / instance, "0.50 1.25 12.00 1/7 43\n")
        _put(root / "state/rates" / instance, f"eth0 1250000 1250000 tap{number}\n")


def _put(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def main() -> int:
    """Run the benchmark; return its exit status."""
    arguments = program.parser(__doc__, "exporter").parse_args()
    return program.run(arguments.json, measure)


if __name__ == "__main__":
    sys.exit(main())
