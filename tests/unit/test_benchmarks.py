# SPDX-License-Identifier: Apache-2.0
"""The exit statuses and result files of benchmarks."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from benchmarks import clouds, processes, program
from benchmarks.figures import Target
from devcloud.steps import StepFailed


@pytest.fixture(autouse=True)
def unchanged_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)


@pytest.mark.parametrize(("value", "status"), [(1.0, 0), (1.1, 1)])
def test_the_exit_status_tells_of_the_targets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float, status: int
) -> None:
    target = Target("seconds", value, 1.0)
    file = tmp_path / "results" / "some.json"
    report = program.Report("the table", [target], {"seconds": [value]})
    assert program.run(file, lambda: report) == status
    written = json.loads(file.read_text())
    assert written["seconds"] == [value]
    assert written["targets"] == [{"name": "seconds", "value": value, "limit": 1.0}]
    shown = capsys.readouterr().out
    assert "the table" in shown
    assert ("MISSED" in shown) is bool(status)


@pytest.mark.parametrize(
    ("error", "status"), [(StepFailed("no engine", "look"), 2), (KeyboardInterrupt(), 130)]
)
def test_what_was_broken_off_leaves_no_results(
    tmp_path: Path, error: BaseException, status: int
) -> None:
    def measure() -> program.Report:
        raise error

    assert program.run(tmp_path / "some.json", measure) == status
    assert not list(tmp_path.iterdir())


def test_memory_of_processes_counts_only_those_that_run() -> None:
    own = processes.memory([os.getpid()])
    assert 2**20 < own < 2**34
    # No process has this id, because pid_max is at most 2^22.
    assert processes.memory([2**22 + 1]) == 0


def test_clouds_are_compared_by_the_median_of_each_kind() -> None:
    values = {"ovs": (33, 80, 3000.0, 90.0, 40.0), "ovn": (36, 90, 3200.0, 95.0, 44.0)}
    samples = [
        clouds.Sample(network, dict(zip(clouds.UNITS, found, strict=True)))
        for network, found in values.items()
    ]
    report = clouds.report(samples)
    assert report.targets == []
    for name in clouds.UNITS:
        assert name in report.text
    assert re.search(r"memory \(MiB\)\n.*\n  ovs +1 +3000.00.*\n  ovn +1 +3200.00", report.text)
