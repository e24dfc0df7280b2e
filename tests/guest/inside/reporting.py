# SPDX-License-Identifier: Apache-2.0
"""A failure is on the console at once: a guest that is ended by force writes no report."""

import sys

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        print(f"\n{report.longreprtext}", file=sys.__stderr__, flush=True)
