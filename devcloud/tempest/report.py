# SPDX-License-Identifier: Apache-2.0
"""The page ``docs/tempest.rst`` and the list ``docs/results/tempest.csv``, from the results."""

import collections
import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence

from devcloud.configuration import render
from devcloud.settings import CHECKOUT
from devcloud.tempest.results import Result

PAGE = CHECKOUT / "docs" / "tempest.rst"
DATA = CHECKOUT / "docs" / "results" / "tempest.csv"

SUITES = ("tempest.api.compute", "tempest.scenario", "neutron_tempest_plugin.scenario")

KINDS = (
    ("needs live migration", r"live[ -_]?migrat"),
    ("graphics console", r"\bvnc\b|\bspice\b"),
    # the only API whose microversions begin with a 3
    ("needs Cinder", r"cinder|volume|encrypt|microversion range\[3\."),
    ("needs VLAN devices", r"8021q"),
    ("needs Open vSwitch in the kernel", r"switch in the kernel"),
    ("skipped upstream", r"\bbug\b|nova-network|skipped until|ML2/OVN|^Neutron (allows|does)"),
    ("VM-only", r"^VM-only|\bIDE\b|stable.*rescue|rescue.*stable|trusted"),
    ("needs another service", r"^needs another|swift|horizon|unified limits|certified|GRE"),
)
"""Kinds of what is left out, and by what words in a reason they are told."""

OTHER = "not in this cloud"


def kind_of(reason: str) -> str:
    """Return the kind of a reason for which a test is left out."""
    for kind, pattern in KINDS:
        if re.search(pattern, reason, re.IGNORECASE):
            return kind
    return OTHER


def suite_of(test: str) -> str:
    """Return the suite of a test; its first three words if it is in none of them."""
    suites = (suite for suite in SUITES if test.startswith(f"{suite}."))
    return next(suites, ".".join(test.split(".")[:3]))


def list_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [heads, *rows]:
        for number, cell in enumerate(row):
            lines.append(f"   {'* -' if number == 0 else '  -'} {cell}")
    return "\n".join(lines)


def literal(text: str) -> str:
    """Return a text of somebody else's as a literal, in one line."""
    return f"``{' '.join(text.replace('`', chr(39)).split())}``"


def left_out(results: Mapping[str, Result]) -> dict[str, Result]:
    """Return the results of tests that said nothing."""
    return {name: one for name, one in results.items() if one.status in ("skipped", "excluded")}


def figures(results: Mapping[str, Result]) -> str:
    """Return the table of counts by suite."""
    suites: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name, result in results.items():
        suites[suite_of(name)][result.status] += 1
    rows = [
        (
            f"``{suite}``",
            counts.total(),
            counts["passed"],
            counts["failed"],
            counts["skipped"] + counts["excluded"],
        )
        for suite, counts in sorted(suites.items())
    ]
    return list_table(("Suite", "Tests", "Passed", "Failed", "Left out"), rows)


def kinds(results: Mapping[str, Result]) -> str:
    """Return the table of what is left out."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name, result in left_out(results).items():
        counts[kind_of(result.reason)][suite_of(name)] += 1
    suites = sorted({suite_of(name) for name in results})
    rows = [
        (kind, *(counts[kind][suite] for suite in suites))
        for kind in sorted(counts, key=lambda kind: -counts[kind].total())
    ]
    return list_table(("Kind", *(f"``{suite}``" for suite in suites)), rows)


def failures(results: Mapping[str, Result]) -> str:
    """Return the list of failed tests with the last line of what each said."""
    failed = [
        f"* {literal(name)}: {literal(result.reason or 'no message')}"
        for name, result in sorted(results.items())
        if result.status == "failed"
    ]
    return "\n".join(failed) or "None."


def data(results: Mapping[str, Result]) -> str:
    """Return every test that failed or was left out as CSV, sorted by kind and reason."""
    rows = sorted(
        (
            "failed" if result.status == "failed" else kind_of(result.reason),
            " ".join(result.reason.split()),
            result.status,
            name,
        )
        for name, result in results.items()
        if result.status != "passed"
    )
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(("kind", "reason", "status", "test"))
    writer.writerows(rows)
    return written.getvalue()


def control(results: Mapping[str, Result], fake: Mapping[str, Result]) -> str:
    """Return the figures of the control run of the tests that pass on this driver.

    :param fake: the results with Nova's fake driver.
    """
    if not fake:
        return "The control run has no results yet."
    here = {name for name, result in results.items() if result.status == "passed"}
    suites = {suite_of(name) for name in fake}
    asked = {name for name in here if suite_of(name) in suites}
    there = asked & fake.keys()
    telling = {name for name in there if fake[name].status != "passed"}
    dates = sorted(result.date for result in fake.values())
    return (
        f"Of the {len(asked)} tests that pass on this driver, {len(there)} ran there, from"
        f" {dates[0]} to {dates[-1]} UTC: {len(there) - len(telling)} pass there too, and"
        f" {len(telling)} test a driver."
    )


def page(results: Mapping[str, Result], fake: Mapping[str, Result]) -> str:
    """Return the page.

    :param fake: the results of the control run.
    """
    dates = sorted(result.date for result in results.values())
    seconds = sum(result.seconds for result in results.values())
    return render(
        "tempest.rst",
        {
            "first": dates[0],
            "last": dates[-1],
            "minutes": f"{seconds / 60:.0f}",
            "figures": figures(results),
            "control": control(results, fake),
            "kinds": kinds(results),
            "failures": failures(results),
        },
    )


def write(results: Mapping[str, Result], fake: Mapping[str, Result]) -> None:
    """Write the page and the list.

    :param fake: the results of the control run.
    """
    PAGE.write_text(page(results, fake))
    DATA.write_text(data(results))
