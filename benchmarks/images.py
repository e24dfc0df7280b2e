# SPDX-License-Identifier: Apache-2.0
"""Cold boots, snapshots and rebuilds beside the raw tools, with targets.

``make bench-images``; docs/benchmarks.rst explains each figure.
"""

import contextlib
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# A script's own directory is in sys.path, but the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# tests selects the threading mode of Nova, which must precede any import of eventlet.
import tests  # noqa: F401, I001

from openstack.connection import Connection

from benchmarks import figures, processes, program
from benchmarks.glance_images import GLANCE_SECONDS, build, uploaded
from benchmarks.raw_engine import RawEngine
from benchmarks.releases import rebuild
from devcloud import supervise
from devcloud.clients import connect
from devcloud.images import archive_path
from devcloud.services import open_hosts
from devcloud.settings import Settings, load_settings
from devcloud.steps import StepFailed, step, wait_until
from tests.cloud.servers import Servers

MIB = 1 << 20
CHANGED_MIB = 256
AT_ONCE = 20
NAME = "benchmark-image"
# Nova refuses a flavor whose disk is smaller than the image.
FLAVOR = "d1.small"

BOOT, RAW_BOOT = "cold boot: create to ACTIVE", "docker load + run"
ALL = f"{AT_ONCE} cold boots at once"
SNAPSHOT, RAW_SNAPSHOT = "snapshot: request to active in Glance", "docker commit + save"
REBUILD, GAP = "rebuild: call to first answer", "rebuild: last old to first new answer"

RATIO = 1.15
EXTRA_MIB = 64


@dataclasses.dataclass
class Results:
    """The samples by operation.

    :ivar read: bytes read per byte of the image
    :ivar written: bytes written per byte of the image
    :ivar extra_mib: memory growth of nova-compute and its helpers
    :ivar loads: the number of loads of the image for the concurrent boots
    """

    seconds: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    read: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    written: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    extra_mib: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    loads: int = 0


class Bench:
    """Runs one operation after the other on the first host, and measures each.

    :param archive: the image's archive; Glance has the image as ``NAME``
    """

    def __init__(self, settings: Settings, demo: Connection, archive: Path) -> None:
        self.settings, self.demo, self.archive = settings, demo, archive
        self.host = settings.hosts[0]
        self.engine = RawEngine(settings.engine_socket(self.host))
        self.servers = Servers(demo)
        self.results = Results()
        self.log = settings.log / f"nova-compute-{self.host.name}.log"
        self._compute = supervise.process_id(settings, f"nova-compute-{self.host.name}")
        self._docker = supervise.process_id(settings, f"docker-{self.host.name}")

    def measure(self, name: str, work: Callable[[], object], *, ours: bool) -> None:
        """Run an operation and record its duration, traffic and memory."""
        # Earlier dirty pages would otherwise be written during the measurement.
        os.sync()
        # A raw tool's client is a child of this process.
        pids = [self._docker, self._compute if ours else os.getpid()]
        memory = processes.Memory([self._compute])
        before = processes.traffic(pids)
        begin = time.monotonic()
        work()
        seconds = time.monotonic() - begin
        took = processes.traffic(pids).since(before)
        size = self.archive.stat().st_size
        results = self.results
        results.seconds.setdefault(name, []).append(seconds)
        results.read.setdefault(name, []).append(took.read / size)
        results.written.setdefault(name, []).append(took.written / size)
        if ours:
            results.extra_mib.setdefault(name, []).append(memory.growth() / MIB)

    def boot_ours(self, name: str, count: int) -> None:
        """Boot servers until all are ACTIVE, then delete them and the engine's image."""
        begin = self.log.stat().st_size
        self.measure(name, lambda: self._boot(count), ours=True)
        with self.log.open(errors="replace") as lines:
            lines.seek(begin)
            self.results.loads = lines.read().count("Loaded image novadocker/")
        self.forget()

    def boot_raw(self, name: str) -> None:
        """Load the image and run a container of it, then delete both."""
        self.measure(name, lambda: self.engine.load_and_run(self.archive), ours=False)
        self.forget()

    def snapshots(self, rounds: int) -> None:
        """Create an image of a server with changed files, by Nova and by the raw tools."""
        server = self.servers.create("benchmark", image=NAME, flavor=FLAVOR)
        container = f"nova-{server.id}"
        self.engine.run_inside(
            container, f"dd if=/dev/urandom of=/changed bs=1M count={CHANGED_MIB} && sync"
        )

        def ours() -> None:
            made = self.demo.compute.create_server_image(server, f"{NAME}-snapshot").id
            stack.callback(self.demo.image.delete_image, made)
            wait_until(
                lambda: self._is_active(made),
                what="a snapshot",
                advice="openstack server show",
                timeout=GLANCE_SECONDS,
                interval=0.2,
            )

        for _ in range(rounds):
            with contextlib.ExitStack() as stack:
                self.measure(SNAPSHOT, ours, ours=True)
            self.servers.wait(server, lambda now: now.status == "ACTIVE")
            with tempfile.NamedTemporaryFile(dir=self.archive.parent) as target:
                self.measure(
                    RAW_SNAPSHOT,
                    lambda: self.engine.commit_and_save(container, Path(target.name)),
                    ours=False,
                )
            self.engine.forget_commit()
        self.forget()

    def _is_active(self, image_id: str) -> bool:
        found = self.demo.image.find_image(image_id)
        if found is None:
            raise StepFailed("The snapshot failed", f"less {self.log}", self.log)
        return bool(found.status == "active")

    def forget(self) -> None:
        """Delete servers, containers and the engine's image, so that the next boot is cold."""
        self.servers.delete_all()
        self.engine.clear()
        glance = self.demo.image.find_image(NAME, ignore_missing=False)
        self.engine.remove_image(f"novadocker/{glance.id}:{glance.checksum[:12]}")

    def _boot(self, count: int) -> None:
        first = self.servers.create(
            NAME, image=NAME, flavor=FLAVOR, wait=False, min_count=count, max_count=count
        )
        self.servers.made += [found for found in self._listed() if found != first.id]
        wait_until(
            lambda: len(self._listed("ACTIVE") + self._listed("ERROR")) == count,
            what="servers",
            advice="openstack server list",
            timeout=GLANCE_SECONDS,
            interval=0.1,
        )
        if self._listed("ERROR"):
            raise StepFailed("A server failed", "openstack server list --long")

    def _listed(self, status: str = "") -> list[str]:
        query = {"name": NAME} | ({"status": status} if status else {})
        return [found.id for found in self.demo.compute.servers(details=False, **query)]


def measure(settings: Settings, size: int, rounds: int) -> Results:
    """Run all measurements, then delete everything that they created."""
    with (
        connect(settings, "demo") as demo,
        connect(settings, "admin") as admin,
        # With one enabled host, the host of each server is certain.
        open_hosts(admin, settings, settings.hosts[:1]),
        tempfile.TemporaryDirectory(dir=settings.folder) as folder,
        contextlib.ExitStack() as stack,
    ):
        with step(f"an image of {size} MiB"):
            archive = build(Path(folder), size)
            stack.enter_context(uploaded(demo, NAME, archive))
        bench = Bench(settings, demo, archive)
        stack.callback(bench.forget)
        with step(f"cold boots: {rounds} of each kind"):
            for _ in range(rounds):
                bench.boot_ours(BOOT, 1)
                bench.boot_raw(RAW_BOOT)
        with step(f"{AT_ONCE} cold boots at once"):
            bench.boot_ours(ALL, AT_ONCE)
        with step(f"snapshots: {rounds} of each kind"):
            bench.snapshots(rounds)
        with step("rebuilds"):
            small = archive_path(settings, "busybox")
            found = rebuild(
                settings,
                demo,
                lambda name, **more: stack.enter_context(uploaded(demo, name, small, **more)),
                bench.servers,
            )
            bench.results.seconds |= {REBUILD: found.first_answers, GAP: found.gaps}
    return bench.results


def report(results: Results, size: int) -> program.Report:
    """Return the report of the results with an image of ``size`` MiB."""
    medians = {name: statistics.median(values) for name, values in results.seconds.items()}
    targets = [
        figures.Target(f"{ours} / {raw}", medians[ours] / medians[raw], RATIO)
        for ours, raw in ((BOOT, RAW_BOOT), (SNAPSHOT, RAW_SNAPSHOT))
    ]
    targets += [
        figures.Target(f"extra MiB of nova-compute, {name}", max(values), EXTRA_MIB)
        for name, values in results.extra_mib.items()
    ]
    targets.append(figures.Target(f"loads for {ALL}", results.loads, 1))

    text = "\n\n".join(
        (
            figures.table("Time", "s", figures.summaries(results.seconds)),
            figures.table(
                "Bytes written per byte of the image", "bytes", figures.summaries(results.written)
            ),
            figures.table(
                "Bytes read from the disk per byte of the image",
                "bytes",
                figures.summaries(results.read),
            ),
            figures.table(
                "Growth of nova-compute's memory, peak", "MiB", figures.summaries(results.extra_mib)
            ),
            f"{ALL} / {BOOT}: {medians[ALL] / medians[BOOT]:.2f}",
        )
    )
    return program.Report(text, targets, {"size_mib": size} | dataclasses.asdict(results))


def main() -> int:
    """Run the benchmark; return its exit status."""
    parser = program.parser(__doc__, "images")
    parser.add_argument(
        "--size", type=int, default=2048, help="size of the image in MiB (default: 2048)"
    )
    parser.add_argument("--rounds", type=int, default=1, help="rounds of each kind (default: 1)")
    arguments = parser.parse_args()
    size = arguments.size
    return program.run(
        arguments.json, lambda: report(measure(load_settings(), size, arguments.rounds), size)
    )


if __name__ == "__main__":
    sys.exit(main())
