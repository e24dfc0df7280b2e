# SPDX-License-Identifier: Apache-2.0
"""Test results: read from stestr's stream, kept in a file that later runs update."""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import subunit  # type: ignore[import-untyped]
from testtools import StreamToDict

STATUSES = {"success": "passed", "uxsuccess": "failed", "fail": "failed", "skip": "skipped"}
"""Subunit's statuses and this module's. A test that only began (``inprogress``) failed."""

FIXTURE = re.compile(r"(?:setUp|tearDown)Class \((?P<name>.+)\)")
"""The id of a class's fixture that failed or skipped."""


RAISED = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Timeout|Mismatch|Failed|Invalid\w*)\b")
"""The start of the line of a traceback that names the exception."""

MOST_CHARACTERS = 240
"""The maximum length of a reason, because some contain a whole traceback."""


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one test.

    :ivar status: ``passed``, ``failed``, ``skipped`` or ``excluded``.
    :ivar reason: the cause of an exclusion, skip or failure, in one line.
    :ivar seconds: its duration.
    :ivar date: its end in UTC, as ``2026-11-25 13:20``.
    """

    status: str
    reason: str
    seconds: float
    date: str


@dataclasses.dataclass(frozen=True)
class Exclusion:
    """A line of the list of excluded tests."""

    pattern: re.Pattern[str]
    reason: str


def test_name(identity: str) -> str:
    """Return a test's name without the attributes in brackets at its end."""
    return identity.partition("[")[0]


def class_name(test: str) -> str:
    """Return the name of a test's class."""
    return test.rpartition(".")[0]


def read_exclusions(path: Path) -> list[Exclusion]:
    """Parse a list in stestr's format.

    :raises ValueError: a line has no reason.
    """
    found = []
    for line in path.read_text().splitlines():
        pattern, _, reason = line.partition("#")
        if pattern.strip() and not reason.strip():
            raise ValueError(f"{path}: the pattern {pattern.strip()} has no reason")
        if pattern.strip():
            found.append(Exclusion(re.compile(pattern.strip()), reason.strip()))
    return found


def last_line(details: Mapping[str, Any]) -> str:
    """Return why a test was skipped or failed: the skip's reason, or its traceback's exception.

    Tempest writes an exception's details on a line of their own, which is appended.
    """
    texts = [details[name].as_text() for name in ("reason", "traceback") if name in details]
    lines = [line.rstrip() for text in texts for line in text.splitlines() if line.strip()]
    raised = [number for number, line in enumerate(lines) if RAISED.match(line)]
    telling = lines[raised[-1] : raised[-1] + 1] if raised else lines[-1:]
    telling += [line for line in lines if line.startswith("Details: ")][-1:]
    return " ".join(" ".join(telling).split())[:MOST_CHARACTERS]


def read_stream(stream: BinaryIO, listed: Iterable[str]) -> dict[str, Result]:
    """Parse a run's stream.

    :param listed: the names of the run's tests; each test of a class inherits the result of the
        class's fixture.
    """
    found: dict[str, Result] = {}
    of_classes: dict[str, Result] = {}

    def take(test: Mapping[str, Any]) -> None:
        if test["status"] == "exists":
            return
        begin, end = test["timestamps"]
        # A worker that died reports no end.
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
        # If the tear-down of a class failed, its tests count as failed too.
        if of_class is not None and (name not in found or of_class.status == "failed"):
            found[name] = of_class
    return found


def exclude(listed: Iterable[str], exclusions: Iterable[Exclusion], date: str) -> dict[str, Result]:
    """Return the results of the excluded tests."""
    rules = list(exclusions)
    return {
        name: Result("excluded", rule.reason, 0.0, date)
        for name in listed
        for rule in rules
        if rule.pattern.search(name)
    }


def load(path: Path) -> dict[str, Result]:
    """Return the results of earlier runs; empty if there is no file."""
    if not path.exists():
        return {}
    return {name: Result(**values) for name, values in json.loads(path.read_text()).items()}


def save(path: Path, results: Mapping[str, Result]) -> None:
    """Write the results, replacing the file atomically."""
    draft = path.with_suffix(".new")
    values = {name: dataclasses.asdict(results[name]) for name in sorted(results)}
    draft.write_text(json.dumps(values, indent=1))
    draft.replace(path)
