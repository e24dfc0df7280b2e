# SPDX-License-Identifier: Apache-2.0
"""A plugin that prints failures at once, because a killed guest writes no report."""

import sys

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        print(f"\n{report.longreprtext}", file=sys.__stderr__, flush=True)
