# SPDX-License-Identifier: Apache-2.0
"""The page ``docs/functional.rst``: which of Nova's tests pass, and why the others can't."""

import collections
import importlib.metadata
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.functional.run import Result

HERE = Path(__file__).resolve().parent
TEXT = HERE / "page.rst"
PAGE = HERE.parent.parent / "docs" / "functional.rst"


def by_class(results: Iterable[Result]) -> str:
    """Return names as a literal block, the tests below their class."""
    classes = collections.defaultdict(list)
    for result in sorted(results, key=lambda result: result.name):
        owner, _, name = result.name.rpartition(".")
        classes[owner].append(name)
    lines = [
        line for owner, names in classes.items() for line in (owner, *(f"  {n}" for n in names))
    ]
    return "\n".join(["::", "", *(f"  {line}" for line in lines)])


def kinds(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the tests that say nothing of the driver, or can't pass with it, by why."""
    found = collections.defaultdict(list)
    for result in results:
        if result.outcome == "other driver":
            found["wants a fake driver of Nova's for what that does besides"].append(result)
        elif result.outcome == "skipped":
            found["skipped by Nova"].append(result)
        elif result.outcome == "failed":
            found["FAILED"].append(result)
        elif result.outcome == "left out":
            found[result.reason].append(result)
        elif not result.booted:
            found["passes, but boots no container: says nothing of a driver"].append(result)
    return dict(sorted(found.items()))


def write(results: Sequence[Result]) -> None:
    """Write the page."""
    proven = [result for result in results if result.outcome == "passed" and result.booted]
    others = kinds(results)
    rows = [
        ("passed, and booted a container", len(proven)),
        *((k, len(v)) for k, v in others.items()),
    ]
    table = "\n".join(
        line for text, number in rows for line in (f"   * - {text}", f"     - {number}")
    )
    lists = []
    for kind, tests in others.items():
        title = kind[0].upper() + kind[1:]
        lists.append(f"{title}\n{'-' * len(title)}\n\n{by_class(tests)}\n")
    PAGE.write_text(
        TEXT.read_text().format(
            version=importlib.metadata.version("nova"),
            total=len(results),
            table=table,
            passed=by_class(proven),
            others="\n".join(lists).rstrip(),
        )
    )
