# SPDX-License-Identifier: Apache-2.0
"""The page ``docs/functional.rst`` and the list ``docs/results/functional.csv``."""

import collections
import csv
import importlib.metadata
import io
from collections.abc import Sequence
from pathlib import Path

from tests.functional.run import Result

HERE = Path(__file__).resolve().parent
TEXT = HERE / "page.rst"
PAGE = HERE.parent.parent / "docs" / "functional.rst"
DATA = HERE.parent.parent / "docs" / "results" / "functional.csv"

PROVEN = "passed, and booted a container"


def kinds(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the tests by kind: those that prove the driver first, the others by their reason."""
    proven: list[Result] = []
    found = collections.defaultdict(list)
    for result in results:
        if result.outcome == "other driver":
            found["needs another fake driver of Nova's for its further behaviour"].append(result)
        elif result.outcome == "skipped":
            found["skipped by Nova"].append(result)
        elif result.outcome == "failed":
            found["FAILED"].append(result)
        elif result.outcome == "left out":
            found[result.reason].append(result)
        elif not result.booted:
            found["passes, but boots no container, so it does not test a driver"].append(result)
        else:
            proven.append(result)
    return {PROVEN: proven, **dict(sorted(found.items()))}


def page(results: Sequence[Result]) -> str:
    """Return the page."""
    table = "\n".join(
        line
        for kind, tests in kinds(results).items()
        for line in (f"   * - {kind}", f"     - {len(tests)}")
    )
    return TEXT.read_text().format(
        version=importlib.metadata.version("nova"), total=len(results), table=table
    )


def data(results: Sequence[Result]) -> str:
    """Return every test with its kind as CSV, in the order of the page."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(("result", "test"))
    for kind, tests in kinds(results).items():
        writer.writerows((kind, name) for name in sorted(result.name for result in tests))
    return written.getvalue()


def write(results: Sequence[Result]) -> None:
    """Write the page and the list."""
    PAGE.write_text(page(results))
    DATA.write_text(data(results))
