# SPDX-License-Identifier: Apache-2.0
"""Boots of servers beside the usual alternatives, with targets.

``make bench-boot``; docs/benchmarks.rst explains each figure.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

# A script's own directory is in sys.path, but the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import fake_host, figures, memory, program, worker
from benchmarks.servers import Servers
from devcloud import fake
from devcloud.clients import connect
from devcloud.settings import Settings, load_settings
from devcloud.steps import step

IMAGE = "busybox"
MEGABYTE = 10**6

RAW = "raw engine: create + start"
SPAWN = "spawn, start_grace = 0"
HOST_IDS_SPAWN = "spawn, start_grace = 0, ids of the host"
WATCHED_SPAWN = "spawn, default start_grace"

OWN = "Docker driver"
WAITED = "of that, wait for Neutron's event"
REST = "Docker driver without that wait"
FAKE = "fake driver"

BARE_MEMORY = "bare container"
SERVER_MEMORY = "server of the driver"
MEMORY_BATCHES = 5

SPAWN_RATIO = 0.75
USER_NAMESPACE_RATIO = 1.1
ACTIVE_SECONDS = 0.4
MEMORY_BYTES = MEGABYTE

Samples = dict[str, list[float]]


@dataclasses.dataclass
class Results:
    """The samples by name: boots of containers, boots of servers in seconds, bytes per server."""

    boots: dict[str, list[worker.Boot]]
    servers: Samples = dataclasses.field(default_factory=dict)
    memory: Samples = dataclasses.field(default_factory=dict)


def boot_containers(boots: worker.Worker, rounds: int) -> dict[str, list[worker.Boot]]:
    """Boot a container of each kind per round, sequentially; the first round does not count."""
    kinds: dict[str, Callable[[], worker.Boot]] = {
        SPAWN: lambda: boots.spawn(grace=0.0),
        RAW: boots.raw,
        HOST_IDS_SPAWN: lambda: boots.spawn(grace=0.0, userns="host"),
        WATCHED_SPAWN: boots.spawn,
    }
    names = (RAW, SPAWN, HOST_IDS_SPAWN, WATCHED_SPAWN)
    found: dict[str, list[worker.Boot]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name, boot in kinds.items():
            booted = boot()
            boots.clear()
            if number:
                found[name].append(booted)
    return found


def boot_servers(settings: Settings, image_id: str, rounds: int) -> Samples:
    """Boot a server in each availability zone per round; the first round does not count."""
    logs = [settings.log / f"nova-compute-{host.name}.log" for host in settings.hosts]
    found: Samples = {OWN: [], WAITED: [], REST: [], FAKE: []}
    with connect(settings, "demo") as connection:
        servers = Servers(connection, image_id, logs)
        for number in range(rounds + 1):
            # The aftermath of a server's deletion slows the next boot, so each kind follows each
            # other kind.
            zones = (worker.OWN_ZONE, fake.ZONE) if number % 2 else (fake.ZONE, worker.OWN_ZONE)
            booted = {zone: servers.boot(zone) for zone in zones}
            if number:
                seconds, waited = booted[worker.OWN_ZONE]
                found[OWN].append(seconds)
                found[WAITED].append(waited)
                found[REST].append(seconds - waited)
                found[FAKE].append(booted[fake.ZONE][0])
    return found


def fill_memory(boots: worker.Worker, batch: int) -> Samples:
    """Boot a batch of each kind in turn and measure the memory per server."""
    kinds = {BARE_MEMORY: boots.raw, SERVER_MEMORY: boots.spawn}
    found: Samples = {name: [] for name in kinds}
    for _ in range(MEMORY_BATCHES):
        for name, boot in kinds.items():
            before = memory.used_bytes()
            for _ in range(batch):
                boot()
            found[name].append((memory.used_bytes() - before) / batch)
            boots.clear()
    return found


def measure(settings: Settings, rounds: int) -> Results:
    """Run all measurements, then delete everything that they created."""
    record = worker.image_on(settings, settings.hosts[0], IMAGE)
    with worker.started(settings, settings.hosts[0], record) as boots:
        with step(f"containers: {rounds} of each kind"):
            results = Results(boot_containers(boots, rounds))
        with fake_host.started(settings), step(f"servers: {rounds} of each driver"):
            results.servers = boot_servers(settings, record["id"], rounds)
        with step(f"memory: {MEMORY_BATCHES} batches of {rounds} of each kind"):
            results.memory = fill_memory(boots, rounds)
    return results


def report(results: Results) -> program.Report:
    """Return the report of the results."""
    seconds = {name: [boot.seconds for boot in boots] for name, boots in results.boots.items()}
    parts = {
        name: figures.median_parts([boot.parts for boot in boots])
        for name, boots in results.boots.items()
    }
    boots, servers, used = map(figures.summaries, (seconds, results.servers, results.memory))
    watched = boots[WATCHED_SPAWN].median / boots[RAW].median
    targets = [
        figures.Target(f"{SPAWN} / {RAW}", boots[SPAWN].median / boots[RAW].median, SPAWN_RATIO),
        figures.Target(
            f"{SPAWN} / {HOST_IDS_SPAWN}",
            boots[SPAWN].median / boots[HOST_IDS_SPAWN].median,
            USER_NAMESPACE_RATIO,
        ),
        figures.Target(
            f"seconds to ACTIVE: {REST} - {FAKE}",
            servers[REST].median - servers[FAKE].median,
            ACTIVE_SECONDS,
        ),
        figures.Target(
            f"MB of an idle {SERVER_MEMORY} - {BARE_MEMORY}",
            (used[SERVER_MEMORY].median - used[BARE_MEMORY].median) / MEGABYTE,
            MEMORY_BYTES / MEGABYTE,
        ),
    ]
    text = "\n\n".join(
        (
            figures.table("Boot of a container, wiring included", "ms", boots, 1000),
            figures.parts_table(parts),
            figures.table("Server create to ACTIVE, through the API", "s", servers),
            figures.table("Memory of an idle server, batch means", "MB", used, 1 / MEGABYTE),
            f"{WATCHED_SPAWN} / {RAW}: {watched:.2f} (no target: it includes the grace)",
        )
    )
    samples = {
        "boot_seconds": seconds,
        "boot_part_medians_seconds": parts,
        "active_seconds": results.servers,
        "memory_bytes_per_server": results.memory,
    }
    return program.Report(text, targets, samples)


def main() -> int:
    """Run the benchmark; return its exit status."""
    parser = program.parser(__doc__, "boot")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each kind (default: 20)")
    arguments = parser.parse_args()
    return program.run(arguments.json, lambda: report(measure(load_settings(), arguments.rounds)))


if __name__ == "__main__":
    sys.exit(main())
