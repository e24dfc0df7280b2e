# SPDX-License-Identifier: Apache-2.0
"""The development cloud with Open vSwitch's agent and with OVN: programs, memory and time.

``make bench-clouds``; docs/contributor.rst explains the result. The benchmark deletes the cloud's
data before each cloud.
"""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# A script's own directory is in sys.path, but the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import figures, processes, program
from devcloud import supervise
from devcloud.settings import CHECKOUT, NETWORKS, Settings, load_settings
from devcloud.steps import StepFailed, step

RESOURCES = ("programs", "processes", "memory")
TIMES = ("demo on a new cloud", "demo after a restart")
UNITS = dict(zip((*RESOURCES, *TIMES), ("", "", "MiB", "s", "s"), strict=True))


@dataclass(frozen=True)
class Sample:
    """One cloud of a kind of network, measured with the server of ``make demo``.

    :ivar figures: values by the names of ``UNITS``
    """

    network: str
    figures: Mapping[str, float]


def command(name: str, network: str = "", hosts: str = "") -> float:
    """Run a command of devcloud and return its duration.

    :param network: kind of network of a new cloud; empty for the existing cloud's
    :raises StepFailed: the command failed
    """
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "devcloud", name],
        cwd=CHECKOUT,
        env={**os.environ, "DEVCLOUD_NETWORK": network, "DEVCLOUD_HOSTS": hosts},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        raise StepFailed(f"devcloud {name} exited with {done.returncode}", "see its output above")
    return time.monotonic() - begin


def resources(settings: Settings) -> dict[str, float]:
    """Return the numbers of programs and processes of the running cloud, and their memory."""
    running = [state for state in supervise.states(settings).values() if state == "RUNNING"]
    pids = list(processes.tree([supervise.proxy(settings).getPID()]))
    values = (len(running), len(pids), processes.memory(pids) / 2**20)
    return dict(zip(RESOURCES, values, strict=True))


def measure_cloud(network: str, hosts: str) -> Sample:
    """Create a cloud in place of the existing one and measure it."""
    command("clean")
    new = command("demo", network, hosts)
    found = resources(load_settings())
    command("down")
    again = command("demo")
    return Sample(network, {**found, **dict(zip(TIMES, (new, again), strict=True))})


def measure(rounds: int, hosts: str) -> list[Sample]:
    """Measure clouds of each kind in turn, then delete the last one."""
    samples = []
    try:
        # The images are built once and kept.
        command("images")
        for number in range(rounds):
            for network in NETWORKS if number % 2 == 0 else reversed(NETWORKS):
                with step(f"cloud {number + 1} with {network}"):
                    samples.append(measure_cloud(network, hosts))
    finally:
        command("clean")
    return samples


def report(samples: Sequence[Sample]) -> program.Report:
    """Return the report of the results; no figure has a target."""
    tables = []
    for name, unit in UNITS.items():
        rows = {
            network: [found.figures[name] for found in samples if found.network == network]
            for network in NETWORKS
        }
        tables.append(figures.table(name, unit or "number", figures.summaries(rows)))
    shown = {"clouds": [dataclasses.asdict(sample) for sample in samples]}
    return program.Report("\n\n".join(tables), [], shown)


def main() -> int:
    """Run the benchmark; return its exit status."""
    parser = program.parser(__doc__, "clouds")
    parser.add_argument("--rounds", type=int, default=3, help="clouds of each kind")
    parser.add_argument("--hosts", default="1", help="compute hosts of each cloud")
    arguments = parser.parse_args()
    return program.run(arguments.json, lambda: report(measure(arguments.rounds, arguments.hosts)))


if __name__ == "__main__":
    sys.exit(main())
