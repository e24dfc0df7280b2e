# SPDX-License-Identifier: Apache-2.0
"""The few of Tempest's tests that every run of this project's tests has."""

from devcloud.settings import Settings
from devcloud.tempest.results import Result
from devcloud.tempest.run import list_tests, run_tests, tempest_environment
from devcloud.tempest.workspace import HERE, Plan, prepare

NAMES = HERE / "smoke.txt"
"""The tests, one name on a line."""

PLAN = Plan(name="smoke", source="debian")
"""With an image that every cloud has; another one takes a minute to build."""


def names() -> list[str]:
    """Return the names of the tests."""
    return [line for line in NAMES.read_text().splitlines() if not line.startswith("#")]


def run(settings: Settings) -> dict[str, Result]:
    """Run the tests against the cloud that is up, on all its hosts.

    :return: what became of each; one that Tempest does not have is not there.
    :raises StepFailed: Tempest did not start.
    """
    environment = tempest_environment(settings, prepare(settings, PLAN))
    wanted = set(names()) & set(list_tests(settings, environment, r"^tempest\."))
    return run_tests(settings, environment, wanted)
