# SPDX-License-Identifier: Apache-2.0
"""Nova's functional tests on a stage with this driver, and the containers that each one starts."""

import functools
import logging
import multiprocessing
import re
import unittest
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nova.tests.functional as nova_tests

from tests.functional.stage import REPLACED, Stage

PACKAGE = nova_tests.__name__

CANNOT = Path(__file__).resolve().parent / "cannot.txt"

NOT_OF_DRIVERS = re.compile(
    r"(api|db|wsgi|libvirt|api_sample_tests|notification_sample_tests)\.|test_nova_manage$|"
    r"test_report_client$|test_policy$|test_middleware$|test_graceful_shutdown$|test_service$|"
    r"test_ephemeral_encryption$"
)
"""Nova's modules that test the database, the API's schema, libvirt or other programs.

The samples' tests compare with files that Nova's wheel does not contain.
"""


@dataclass(frozen=True)
class Result:
    """The result of a test.

    :ivar name: name of the test without its package.
    :ivar outcome: ``passed``, ``failed``, ``skipped``, ``left out``, or ``other driver`` when the
        test requires another of Nova's fake drivers for a feature of that driver.
    :ivar booted: number of containers that the test started.
    :ivar reason: the last line of the failure, the reason of the skip or exclusion, or the name of
        the fake driver.
    """

    name: str
    outcome: str
    booted: int
    reason: str = ""


@functools.cache
def read_reasons() -> Sequence[tuple[re.Pattern[str], str]]:
    """Return the excluded tests: a regular expression and its reason per entry."""
    lines = [line for line in CANNOT.read_text().splitlines() if not line.startswith("#")]
    pairs = [line.partition(" # ")[::2] for line in lines if line.strip()]
    return [(re.compile(pattern), reason) for pattern, reason in pairs]


class Outcome(unittest.TestResult):
    """The result of one test; testtools passes its details as text."""

    def __init__(self) -> None:
        super().__init__()
        self.skip_reason: str | None = None

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        """Record the reason."""
        self.skip_reason = reason

    def failure(self) -> str | None:
        """Return the text of the first failure."""
        return next((text for _, text in [*self.failures, *self.errors]), None)


def load(name: str) -> list[unittest.TestCase]:
    """Return the tests of one of Nova's modules, classes or functions."""
    return list(flatten(unittest.defaultTestLoader.loadTestsFromName(f"{PACKAGE}.{name}")))


def modules() -> list[str]:
    """Return the names of the modules whose tests may boot a server on one of the fake drivers."""
    folder = Path(str(nova_tests.__file__)).parent
    found = (
        ".".join(p.relative_to(folder).with_suffix("").parts) for p in folder.rglob("test_*.py")
    )
    return sorted(name for name in found if not NOT_OF_DRIVERS.match(name))


def flatten(suite: Iterable[Any]) -> Iterator[unittest.TestCase]:
    """Yield the tests of a suite."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flatten(test)
        else:
            yield test


def short_name(test: unittest.TestCase) -> str:
    """Return a test's name without its package."""
    return test.id().removeprefix(f"{PACKAGE}.")


def run_test(test: unittest.TestCase) -> Result:
    """Run one test on its own stage."""
    for pattern, reason in read_reasons():
        if pattern.search(short_name(test)):
            return Result(short_name(test), "left out", 0, reason)
    fake = getattr(test, "compute_driver", "").rpartition(".")[2]
    if fake and fake not in REPLACED:
        return Result(short_name(test), "other driver", 0, fake)
    outcome = Outcome()
    with Stage() as stage:
        test.run(outcome)
        booted = stage.booted
    name = short_name(test)
    failure = outcome.failure()
    if failure is not None:
        return Result(name, "failed", booted, telling_line(failure))
    if outcome.skip_reason is not None:
        return Result(name, "skipped", booted, outcome.skip_reason)
    return Result(name, "passed", booted)


def telling_line(text: str) -> str:
    """Return the line of a traceback that names the error, shortened."""
    lines = re.findall(r"^(?:[\w.]+(?:Error|Exception|Exists|NotFound|Mismatch)\b.*)$", text, re.M)
    found = lines[-1] if lines else next(iter(reversed(text.strip().splitlines())), "")
    return " ".join(found.split())[:200]


def run_class(name: str, pattern: str) -> list[Result]:
    """Run the tests of a class whose names match."""
    # Nova's tests capture log records themselves, so printing them is of no use.
    logging.lastResort = None
    warnings.simplefilter("ignore")
    return [run_test(test) for test in load(name) if re.search(pattern, short_name(test))]


def run(pattern: str, jobs: int) -> Iterator[Result]:
    """Run the tests whose names match, with the classes in concurrent processes."""
    names = [short_name(test) for module in modules() for test in load(module)]
    classes = {name.rpartition(".")[0] for name in names if re.search(pattern, name)}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed(pool.submit(run_class, name, pattern) for name in sorted(classes)):
            yield from done.result()
