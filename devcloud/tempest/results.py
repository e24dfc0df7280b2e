# SPDX-License-Identifier: Apache-2.0
"""What became of each test: from stestr's stream into a file that later runs bring up to date."""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import subunit  # type: ignore[import-untyped]
from testtools import StreamToDict

STATUSES = {"success": "passed", "uxsuccess": "failed", "fail": "failed", "skip": "skipped"}
"""Subunit's words and ours; a test that only began (``inprogress``) failed."""

FIXTURE = re.compile(r"(?:setUp|tearDown)Class \((?P<name>.+)\)")
"""What a class's own set-up is called when it fails or skips."""


RAISED = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Timeout|Mismatch|Failed|Invalid\w*)\b")
"""How the line of a traceback begins that names what was raised."""

MOST_CHARACTERS = 240
"""Of a reason: some hold a whole traceback."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one test.

    :ivar status: ``passed``, ``failed``, ``skipped`` or ``excluded``.
    :ivar reason: why it was left out or failed, in one line.
    :ivar seconds: how long it took.
    :ivar date: when it ended, UTC, as ``2026-11-25 13:20``.
    """

    status: str
    reason: str
    seconds: float
    date: str


@dataclasses.dataclass(frozen=True)
class Exclusion:
    """A line of the list of tests that are left out."""

    pattern: re.Pattern[str]
    reason: str


def test_name(identity: str) -> str:
    """Return a test's name without the attributes in brackets behind it."""
    return identity.partition("[")[0]


def class_name(test: str) -> str:
    """Return the class of a test."""
    return test.rpartition(".")[0]


def read_exclusions(path: Path) -> list[Exclusion]:
    """Read a list as stestr takes it; a line without a reason is a ValueError."""
    found = []
    for line in path.read_text().splitlines():
        pattern, _, reason = line.partition("#")
        if pattern.strip() and not reason.strip():
            raise ValueError(f"{path}: {pattern.strip()} has no reason")
        if pattern.strip():
            found.append(Exclusion(re.compile(pattern.strip()), reason.strip()))
    return found


def last_line(details: Mapping[str, Any]) -> str:
    """Return why a test was skipped or failed: the reason, or what its traceback ends with.

    Tempest says on a line of its own what an exception was about; it goes with the exception's.
    """
    texts = [details[name].as_text() for name in ("reason", "traceback") if name in details]
    lines = [line.rstrip() for text in texts for line in text.splitlines() if line.strip()]
    raised = [number for number, line in enumerate(lines) if RAISED.match(line)]
    telling = lines[raised[-1] : raised[-1] + 1] if raised else lines[-1:]
    telling += [line for line in lines if line.startswith("Details: ")][-1:]
    return " ".join(" ".join(telling).split())[:MOST_CHARACTERS]


def read_stream(stream: BinaryIO, listed: Iterable[str]) -> dict[str, Result]:
    """Read what a run wrote.

    :param listed: the names of the run's tests; what befell a class is told of each of its own.
    """
    found: dict[str, Result] = {}
    of_classes: dict[str, Result] = {}

    def take(test: Mapping[str, Any]) -> None:
        if test["status"] == "exists":
            return
        begin, end = test["timestamps"]
        # a worker that died says no end
        end = end or begin
        result = Result(
            status=STATUSES.get(test["status"], "failed"),
            reason=last_line(test["details"]) if test["status"] != "success" else "",
            seconds=round((end - (begin or end)).total_seconds(), 1),
            date=end.strftime("%Y-%m-%d %H:%M"),
        )
        fixture = FIXTURE.fullmatch(test["id"])
        if fixture is None:
            found[test_name(test["id"])] = result
        else:
            of_classes[fixture["name"]] = result

    collector = StreamToDict(take)
    collector.startTestRun()
    subunit.ByteStreamToStreamResult(stream, non_subunit_name="output").run(collector)
    collector.stopTestRun()
    for name in listed:
        of_class = of_classes.get(class_name(name))
        # a class that could not be cleaned up has failed, whatever its tests say
        if of_class is not None and (name not in found or of_class.status == "failed"):
            found[name] = of_class
    return found


def exclude(listed: Iterable[str], exclusions: Iterable[Exclusion], date: str) -> dict[str, Result]:
    """Return the results of the tests that are left out."""
    rules = list(exclusions)
    return {
        name: Result("excluded", rule.reason, 0.0, date)
        for name in listed
        for rule in rules
        if rule.pattern.search(name)
    }


def load(path: Path) -> dict[str, Result]:
    """Return the results of the runs so far, none before the first."""
    if not path.exists():
        return {}
    return {name: Result(**values) for name, values in json.loads(path.read_text()).items()}


def save(path: Path, results: Mapping[str, Result]) -> None:
    """Write the results, replacing the file at once."""
    draft = path.with_suffix(".new")
    values = {name: dataclasses.asdict(results[name]) for name in sorted(results)}
    draft.write_text(json.dumps(values, indent=1))
    draft.replace(path)
