# SPDX-License-Identifier: Apache-2.0
"""Cold boots, snapshots and rebuilds side by side with the raw tools, held to the targets.

``make bench-images``; what each figure means is in docs/benchmarks.rst.
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

# run as a script, so that the folder of the script is on the path and the checkout is not
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# before anything imports eventlet: Nova forbids it there
import tests  # noqa: F401, I001

from openstack.connection import Connection

from benchmarks import figures, processes, program
from benchmarks.glance_images import GLANCE_SECONDS, build, uploaded
from benchmarks.raw_engine import RawEngine
from benchmarks.releases import rebuild
from benchmarks.servers import open_hosts
from devcloud import supervise
from devcloud.clients import connect
from devcloud.images import archive_path
from devcloud.settings import Settings, load_settings
from devcloud.steps import StepFailed, step, wait_until
from tests.cloud.servers import Servers

MIB = 1 << 20
CHANGED_MIB = 256
AT_ONCE = 20
NAME = "benchmark-image"
# its disk is larger than the image, or Nova refuses it
FLAVOR = "d1.small"

BOOT, RAW_BOOT = "cold boot: create to ACTIVE", "docker load + run"
ALL = f"{AT_ONCE} cold boots at once"
SNAPSHOT, RAW_SNAPSHOT = "snapshot: request to active in Glance", "docker commit + save"
REBUILD, GAP = "rebuild: call to first answer", "rebuild: last old to first new answer"

RATIO = 1.15
EXTRA_MIB = 64


@dataclasses.dataclass
class Results:
    """What was measured, by what was done.

    :ivar written: bytes written for each byte of the image, and so ``read``
    :ivar extra_mib: of nova-compute and its helpers
    :ivar loads: how often the image was loaded for the boots at once
    """

    seconds: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    read: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    written: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    extra_mib: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    loads: int = 0


class Bench:
    """Does one thing after the other on the first host, and measures each.

    :param archive: of the image, which Glance has as ``NAME``
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
        """Do something, and note its time and what it took."""
        # else what was before would still be written meanwhile
        os.sync()
        # a raw tool's client is a child of this process
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
        """Boot servers, each ACTIVE in the end, and forget the image again."""
        begin = self.log.stat().st_size
        self.measure(name, lambda: self._boot(count), ours=True)
        with self.log.open(errors="replace") as lines:
            lines.seek(begin)
            self.results.loads = lines.read().count("Loaded image novadocker/")
        self.forget()

    def boot_raw(self, name: str) -> None:
        """Load the image and run a container of it, and forget both again."""
        self.measure(name, lambda: self.engine.load_and_run(self.archive), ours=False)
        self.forget()

    def snapshots(self, rounds: int) -> None:
        """Make an image of one server that has changed files, in both ways."""
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
            raise StepFailed("the snapshot failed", f"less {self.log}", self.log)
        return bool(found.status == "active")

    def forget(self) -> None:
        """Remove servers, containers and the image from the engine, so that a boot is cold."""
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
            raise StepFailed("a server failed", "openstack server list --long")

    def _listed(self, status: str = "") -> list[str]:
        query = {"name": NAME} | ({"status": status} if status else {})
        return [found.id for found in self.demo.compute.servers(details=False, **query)]


def measure(settings: Settings, size: int, rounds: int) -> Results:
    """Measure everything; nothing of it is left behind."""
    with (
        connect(settings, "demo") as demo,
        connect(settings, "admin") as admin,
        # so that it is known where servers are
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
                demo,
                lambda name, **more: stack.enter_context(uploaded(demo, name, small, **more)),
                bench.servers,
            )
            bench.results.seconds |= {REBUILD: found.first_answers, GAP: found.gaps}
    return bench.results


def report(results: Results, size: int) -> program.Report:
    """Return what was found with an image of ``size`` MiB."""
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

    def rows(found: dict[str, list[float]]) -> dict[str, figures.Summary]:
        return {name: figures.summarize(values) for name, values in found.items()}

    text = "\n\n".join(
        (
            figures.table("Time", "s", rows(results.seconds)),
            figures.table("Written for each byte of the image", "bytes", rows(results.written)),
            figures.table("Read from the disk for each", "bytes", rows(results.read)),
            figures.table("More memory of nova-compute, peak", "MiB", rows(results.extra_mib)),
            f"{ALL} / {BOOT}: {medians[ALL] / medians[BOOT]:.2f}",
        )
    )
    return program.Report(text, targets, {"size_mib": size} | dataclasses.asdict(results))


def main() -> int:
    """Run the benchmark; return its exit status."""
    parser = program.parser(__doc__, "images")
    parser.add_argument("--size", type=int, default=2048, help="MiB of the image (default: 2048)")
    parser.add_argument("--rounds", type=int, default=1, help="of each kind (default: 1)")
    arguments = parser.parse_args()
    size = arguments.size
    return program.run(
        arguments.json, lambda: report(measure(load_settings(), size, arguments.rounds), size)
    )


if __name__ == "__main__":
    sys.exit(main())
