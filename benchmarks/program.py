# SPDX-License-Identifier: Apache-2.0
"""The arguments, results file and exit status of all benchmarks."""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Target, verdict
from devcloud.steps import StepFailed, explain, say

_RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Report:
    """The report of a benchmark.

    :ivar text: the figures as text
    :ivar targets: the figures that must not exceed a limit
    :ivar samples: the content of the JSON file besides the targets and the machine
    """

    text: str
    targets: list[Target]
    samples: Mapping[str, Any]


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser of the arguments that all benchmarks take.

    :param name: name of the benchmark and of its results file
    """
    found = argparse.ArgumentParser(description=description)
    file = _RESULTS / f"{name}.json"
    found.add_argument("--json", type=Path, default=file, help=f"default: {file}")
    return found


def run(file: Path, measure: Callable[[], Report]) -> int:
    """Measure, print the report and write the JSON file.

    :param measure: deletes what it creates, also when it is interrupted or terminated
    :returns: the exit status: 0 when every target is reached, 1 when one is missed, 2 when a step
        failed, 130 when the run was interrupted
    """
    # SystemExit on SIGTERM runs the clean-up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    machine: dict[str, object] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpus": os.cpu_count(),
        "kernel": os.uname().release,
        "load_before": os.getloadavg(),
    }
    try:
        report = measure()
    except StepFailed as failure:
        print(explain(failure), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    machine["load_after"] = os.getloadavg()
    targets = [asdict(target) for target in report.targets]
    document = {"machine": machine, **report.samples, "targets": targets}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=1))
    print(f"\n{report.text}\n\n{verdict(report.targets)}\n")
    say(f"all samples are in {file}")
    return 0 if all(target.reached for target in report.targets) else 1
