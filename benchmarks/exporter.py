# SPDX-License-Identifier: Apache-2.0
"""CPU time of a scrape of the exporter, by the number of servers.

The control groups are a tree of plain files, as version 1 has them: what the kernel itself spends
on making the figures is not in it, all else is.
"""

import json
import statistics
import tempfile
import time
import uuid
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from novadocker.exporter.collector import HostCollector, Places

_COUNTS = (50, 200, 500)
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
}
_NET_DEV = "  eth0: 1 1 1 1 0 0 0 0 1 1 1 1 0 0 0 0\n"


def main() -> None:
    """Print a line for each number of servers."""
    print("servers  CPU ms per scrape (median)  largest  series")
    for count in _COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            _make_host(root, count)
            _measure(root, count)


def _measure(root: Path, count: int) -> None:
    registry = CollectorRegistry()
    registry.register(HostCollector(Places(root, root / "data", str(root / "engine"))))
    text = generate_latest(registry).decode()
    series = sum(not line.startswith("#") for line in text.splitlines())
    used = []
    for _ in range(_SCRAPES):
        begin = time.process_time()
        generate_latest(registry)
        used.append((time.process_time() - begin) * 1000)
    print(f"{count:7}  {statistics.median(used):26.1f}  {max(used):7.1f}  {series:6}")


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
        stored = {"Name": f"/nova-{instance}", "Config": {"Labels": labels}}
        _put(root / "data/containers" / container / "config.v2.json", json.dumps(stored))


def _put(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


if __name__ == "__main__":
    main()
