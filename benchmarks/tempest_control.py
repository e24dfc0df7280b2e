# SPDX-License-Identifier: Apache-2.0
"""Tempest on Nova's fake driver: a test that passes there too does not test a driver.

``make bench-tempest_control``, after ``make tempest``; the figures are in docs/tempest.rst.
"""

import argparse
import re
import sys
from pathlib import Path

# A script's own directory is in sys.path, but the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import fake_host
from devcloud import fake
from devcloud.clients import connect
from devcloud.services import open_hosts
from devcloud.settings import load_settings
from devcloud.steps import StepFailed, explain, say, step
from devcloud.tempest import report, results
from devcloud.tempest.run import control_file, results_file, run_tests, tempest_environment
from devcloud.tempest.workspace import Plan, prepare

SUITE = "tempest.api.compute."

PLAN = Plan(hosts=(fake.HOST,), build_seconds=20, ssh_seconds=5)
"""A server of the fake driver is ACTIVE at once and accepts no login."""

WORKERS = 4


def main() -> int:
    """Run the tests that pass on this driver and keep the result of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "pattern", nargs="?", default="", help="regular expressions of test names; default: all"
    )
    arguments = parser.parse_args()
    settings = load_settings()
    own = results.load(results_file(settings))
    names = [
        name
        for name, result in own.items()
        if name.startswith(SUITE)
        and result.status == "passed"
        and re.search(arguments.pattern, name)
    ]
    try:
        if not names:
            raise StepFailed("No test has passed on this driver", "make tempest")
        with (
            fake_host.started(settings),
            connect(settings, "admin") as admin,
            open_hosts(admin, settings, ()),
        ):
            environment = tempest_environment(settings, prepare(settings, PLAN))
            with step(f"Tempest on the fake driver: {len(names)} tests"):
                found = run_tests(settings, environment, names, workers=WORKERS)
    except StepFailed as failure:
        print(explain(failure), file=sys.stderr)
        return 1
    known = results.load(control_file(settings)) | found
    results.save(control_file(settings), known)
    report.write(own, known)
    passed = sum(result.status == "passed" for result in found.values())
    say(f"{passed} of {len(names)} pass on the fake driver too")
    return 0


if __name__ == "__main__":
    sys.exit(main())
