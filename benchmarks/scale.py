# SPDX-License-Identifier: Apache-2.0
"""The cost of a host's idle servers for nova-compute, from ten servers to two hundred.

``make bench-scale``; docs/benchmarks.rst explains each figure.
"""

import dataclasses
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# A script's own directory is in sys.path, but the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# tests selects the threading mode of Nova, which must precede any import of eventlet.
import tests  # noqa: F401, I001

from benchmarks import figures, program, worker
from benchmarks.resize import BRIDGE, bridge
from devcloud.settings import Settings, load_settings
from devcloud.steps import step

IMAGE = "busybox"
COUNTS = (10, 50, 100, 200)
TURNS = 5
IDLE_SECONDS = 20.0

# Turns per minute by Nova's defaults of update_resources_interval, sync_power_state_interval and
# running_deleted_instance_poll_interval.
A_MINUTE: Mapping[str, float] = {
    "resources": 1.0,
    "power states": 1 / 10,
    "deleted servers": 1 / 30,
}

CPU_MS = 3.0
START_SECONDS = 20.0


@dataclass(frozen=True)
class Level:
    """The figures of a number of servers.

    :ivar tasks: the median of a task's turns, by the task's name
    :ivar idle: CPU seconds of the driver's own threads per minute
    :ivar start: seconds of the driver's start
    :ivar first_boot: seconds of the first boot after the driver's start
    """

    servers: int
    tasks: Mapping[str, worker.Task]
    idle: float
    start: float
    first_boot: float

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of CPU time per server and minute."""
        periodic = sum(self.tasks[name].cpu * times for name, times in A_MINUTE.items())
        return (periodic + self.idle) / self.servers * 1000


def measure_level(servers: worker.Worker, kept: list[worker.Boot]) -> Level:
    """Measure with the existing servers, and boot one more."""
    count = len(kept)
    # The first turn fills the driver's caches, so it does not count.
    turns = [servers.tasks() for _ in range(TURNS + 1)][1:]
    tasks = {
        name: worker.Task(
            calls=max(turn[name].calls for turn in turns),
            cpu=statistics.median(turn[name].cpu for turn in turns),
        )
        for name in A_MINUTE
    }
    idle = servers.idle(IDLE_SECONDS).seconds * 60 / IDLE_SECONDS
    # The restart comes last, because its threads work for a while after it.
    start = servers.restart().seconds
    kept.append(servers.spawn())
    return Level(count, tasks, idle, start, kept[-1].seconds)


@contextmanager
def removed(servers: worker.Worker, kept: list[worker.Boot]) -> Iterator[None]:
    """Delete the servers one by one at the end, because one request for all would time out."""
    try:
        yield
    finally:
        while kept:
            servers.remove()
            kept.pop()


def measure(settings: Settings, counts: Sequence[int]) -> list[Level]:
    """Run all measurements, then delete everything that they created."""
    host = settings.hosts[0]
    record = worker.image_on(settings, host, IMAGE)
    levels = []
    kept: list[worker.Boot] = []
    with (
        bridge(settings, host),
        worker.started(settings, host, record, BRIDGE) as servers,
        removed(servers, kept),
    ):
        for count in counts:
            with step(f"{count} servers"):
                while len(kept) < count:
                    kept.append(servers.spawn())
                levels.append(measure_level(servers, kept))
    return levels


def report(levels: Sequence[Level]) -> program.Report:
    """Return the report of the results."""
    few, many = levels[0], levels[-1]
    lines = [
        f"{'servers':>8}{'CPU ms per':>16}{'start':>8}{'then boot':>11}{'own threads':>13}"
        "   task: requests, CPU",
        f"{'':>8}{'server, minute':>16}{'s':>8}{'s':>11}{'ms a minute':>13}   ms of a turn",
    ]
    for level in levels:
        tasks = ", ".join(
            f"{name}: {task.calls}, {task.cpu * 1000:.1f}" for name, task in level.tasks.items()
        )
        lines.append(
            f"{level.servers:>8}{level.cpu_ms:>16.2f}{level.start:>8.2f}{level.first_boot:>11.2f}"
            f"{level.idle * 1000:>13.1f}   {tasks}"
        )
    targets = [
        figures.Target(
            f"requests to the engine, {many.servers} servers over {few.servers}, {name}",
            many.tasks[name].calls - few.tasks[name].calls,
            0,
        )
        for name in A_MINUTE
    ]
    targets.append(
        figures.Target("ms of CPU time for each server in a minute", many.cpu_ms, CPU_MS)
    )
    targets.append(
        figures.Target(f"s, start with {many.servers} servers", many.start, START_SECONDS)
    )
    samples = {"levels": [dataclasses.asdict(level) for level in levels]}
    return program.Report("\n".join(lines), targets, samples)


def main() -> int:
    """Run the benchmark; return its exit status."""
    parser = program.parser(__doc__, "scale")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="numbers of servers")
    arguments = parser.parse_args()
    return program.run(arguments.json, lambda: report(measure(load_settings(), arguments.counts)))


if __name__ == "__main__":
    sys.exit(main())
