# SPDX-License-Identifier: Apache-2.0
"""The few Tempest tests that each run of this project's tests includes."""

from devcloud.settings import Settings
from devcloud.tempest.results import Result
from devcloud.tempest.run import list_tests, run_tests, tempest_environment
from devcloud.tempest.workspace import HERE, Plan, prepare

NAMES = HERE / "smoke.txt"
"""File with the names of the tests, one per line."""

PLAN = Plan(name="smoke", source="debian")
"""Uses an image that every cloud has, because the image for Tempest takes a minute to build."""


def names() -> list[str]:
    """Return the names of the tests."""
    return [line for line in NAMES.read_text().splitlines() if not line.startswith("#")]


def run(settings: Settings) -> dict[str, Result]:
    """Run the tests against the running cloud, on all its hosts.

    :return: the result of each test, without the tests that Tempest does not have.
    :raises StepFailed: Tempest did not start.
    """
    environment = tempest_environment(settings, prepare(settings, PLAN))
    wanted = set(names()) & set(list_tests(settings, environment, r"^tempest\."))
    return run_tests(settings, environment, wanted)
