# SPDX-License-Identifier: Apache-2.0
"""What a host's idle servers cost nova-compute, from ten of them to two hundred.

``make bench-scale``; what each figure means is in docs/benchmarks.rst.
"""

import dataclasses
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# run as a script, so that the folder of the script is on the path and the checkout is not
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# before anything imports eventlet: Nova forbids it there
import tests  # noqa: F401, I001

from benchmarks import figures, program, worker
from benchmarks.resize import BRIDGE, bridge
from devcloud.settings import Settings, load_settings
from devcloud.steps import step

IMAGE = "busybox"
COUNTS = (10, 50, 100, 200)
TURNS = 5
IDLE_SECONDS = 20.0

# how often Nova does each in a minute by default: update_resources_interval,
# sync_power_state_interval, running_deleted_instance_poll_interval
A_MINUTE: Mapping[str, float] = {
    "resources": 1.0,
    "power states": 1 / 10,
    "deleted servers": 1 / 30,
}

CPU_MS = 3.0
START_SECONDS = 20.0


@dataclass(frozen=True)
class Level:
    """What was measured with a number of servers.

    :ivar tasks: by the task's name, the median of its turns
    :ivar idle: seconds of CPU time of the driver's own threads in a minute
    :ivar start: seconds of the driver's start
    :ivar first_boot: seconds of a boot right after it
    """

    servers: int
    tasks: Mapping[str, worker.Task]
    idle: float
    start: float
    first_boot: float

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of CPU time for each server in a minute."""
        periodic = sum(self.tasks[name].cpu * times for name, times in A_MINUTE.items())
        return (periodic + self.idle) / self.servers * 1000


def measure_level(servers: worker.Worker, kept: list[worker.Boot]) -> Level:
    """Measure with the servers that there are; one more is there in the end."""
    count = len(kept)
    # the first turn fills what the driver remembers
    turns = [servers.tasks() for _ in range(TURNS + 1)][1:]
    tasks = {
        name: worker.Task(
            calls=max(turn[name].calls for turn in turns),
            cpu=statistics.median(turn[name].cpu for turn in turns),
        )
        for name in A_MINUTE
    }
    idle = servers.idle(IDLE_SECONDS).seconds * 60 / IDLE_SECONDS
    # last: it leaves threads that have something to do for a while
    start = servers.restart().seconds
    kept.append(servers.spawn())
    return Level(count, tasks, idle, start, kept[-1].seconds)


@contextmanager
def removed(servers: worker.Worker, kept: list[worker.Boot]) -> Iterator[None]:
    """Remove one server after the other in the end: all at once would take too long."""
    try:
        yield
    finally:
        while kept:
            servers.remove()
            kept.pop()


def measure(settings: Settings, counts: Sequence[int]) -> list[Level]:
    """Measure everything; nothing of it is left behind."""
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
    """Return what was found."""
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
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="of servers")
    arguments = parser.parse_args()
    return program.run(arguments.json, lambda: report(measure(load_settings(), arguments.counts)))


if __name__ == "__main__":
    sys.exit(main())
