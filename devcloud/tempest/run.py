# SPDX-License-Identifier: Apache-2.0
"""Running Tempest and keeping the result of each test."""

import datetime
import io
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from devcloud.settings import API_ADDRESS, Settings
from devcloud.steps import StepFailed, say, step
from devcloud.tempest import report, results
from devcloud.tempest.results import Exclusion, Result
from devcloud.tempest.workspace import (
    EXCLUDED,
    NEEDS_VLANS,
    environment_bin,
    folder,
    prepare,
)

APART = (
    "tempest.api.compute.servers.test_server_actions.ServerActionsTestJSON"
    ".test_change_server_password"
)
"""Runs alone, because it removes the floating address over which its class's other tests log in."""

SUITES = (
    r"^(tempest\.(api\.compute|scenario)"
    r"|neutron_tempest_plugin\.scenario"
    r"\.test_(connectivity|mtu|port_forwardings|security_groups|trunk))\."
)
"""The suites of a run without a pattern."""

WORKERS = 2

TEST_SECONDS = 900
"""The timeout of one test."""

RUN_SECONDS = 6 * 3600


def results_file(settings: Settings) -> Path:
    """Return the path of the file with the newest result of each test."""
    return folder(settings) / "results.json"


def control_file(settings: Settings) -> Path:
    """Return the path of the control run's results, which are those with Nova's fake driver."""
    return folder(settings) / "control.json"


def tempest_environment(settings: Settings, config: Path) -> dict[str, str]:
    """Return the environment of stestr and its workers."""
    return {
        "PATH": f"{environment_bin(settings)}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(folder(settings)),
        "LANG": "C.UTF-8",
        "PYTHONWARNINGS": "ignore",
        "TEMPEST_CONFIG_DIR": str(config.parent),
        "TEMPEST_CONFIG": config.name,
        "OS_TEST_TIMEOUT": str(TEST_SECONDS),
        "no_proxy": ",".join(filter(None, [os.environ.get("no_proxy"), API_ADDRESS])),
    }


def ask_stestr(settings: Settings, environment: dict[str, str], *words: str) -> bytes:
    """Return the output of a stestr command.

    :raises StepFailed: the command failed.
    """
    done = subprocess.run(
        [environment_bin(settings) / "stestr", *words],
        cwd=folder(settings),
        env=environment,
        capture_output=True,
        timeout=300,
        check=False,
    )
    # The exit status is also 1 after a run in which a test failed.
    if done.returncode not in (0, 1):
        tail = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise StepFailed(
            f"The command stestr {words[0]} failed: {' '.join(tail)}",
            "look at tempest/etc/tempest.conf",
        )
    return done.stdout


def run_tests(
    settings: Settings, environment: dict[str, str], names: Iterable[str], workers: int = WORKERS
) -> dict[str, Result]:
    """Run some tests and return the result of each.

    :param workers: the number of tests that run concurrently.
    :raises StepFailed: the tests did not start, or the run exceeded its timeout.
    """
    wanted = set(names)
    chosen = folder(settings) / "chosen.txt"
    chosen.write_text("".join(f"^{re.escape(name)}(\\[|$)\n" for name in sorted(wanted)))
    counter = folder(settings) / ".stestr" / "next-stream"
    before = counter.read_text()
    command: list[str | Path] = [
        *(environment_bin(settings) / "stestr", "run", "--concurrency", str(workers)),
        *("--include-list", chosen),
    ]
    try:
        subprocess.run(
            command, cwd=folder(settings), env=environment, timeout=RUN_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StepFailed(
            f"Tempest took more than {RUN_SECONDS} s", "run fewer tests: make tempest TESTS=..."
        ) from error
    if counter.read_text() == before:
        raise StepFailed("Tempest ran no test", "see stestr's output above")
    stream = io.BytesIO(ask_stestr(settings, environment, "last", "--subunit"))
    return results.read_stream(stream, wanted)


def list_tests(settings: Settings, environment: dict[str, str], pattern: str) -> list[str]:
    """Return the names of the tests that a pattern selects.

    :raises StepFailed: no test matches, or the tests cannot be loaded.
    """
    if not (folder(settings) / ".stestr").exists():
        ask_stestr(settings, environment, "init")
    listed = ask_stestr(settings, environment, "list", pattern).decode().split()
    names = [results.test_name(name) for name in listed]
    if not names or "Failures" in listed:
        raise StepFailed(
            f"No test matches {pattern}" if not names else "Tempest's tests cannot be loaded",
            "see the output of stestr list in the directory tempest",
        )
    return names


def has_vlan_devices() -> bool:
    """Return True if the kernel, which the servers share, has VLAN devices."""
    command = "ip link add probe type bridge && ip link add probe.1 link probe type vlan id 1"
    made = subprocess.run(["unshare", "--net", "sh", "-c", command], capture_output=True)
    return made.returncode == 0


def exclusions() -> list[Exclusion]:
    """Return the exclusions that apply on this machine."""
    lists = [EXCLUDED] if has_vlan_devices() else [EXCLUDED, NEEDS_VLANS]
    return [line for path in lists for line in results.read_exclusions(path)]


def run(settings: Settings, patterns: Sequence[str]) -> int:
    """Run the tests that match, keep their results and write the report.

    :param patterns: regular expressions; all suites if empty.
    :return: the number of tests that failed.
    :raises StepFailed: Tempest did not start.
    """
    config = prepare(settings)
    environment = tempest_environment(settings, config)
    listed = set(list_tests(settings, environment, "|".join(patterns) or SUITES))
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
    found = results.exclude(listed, exclusions(), now)
    say(f"{len(listed)} tests, {len(found)} of them excluded")
    wanted = listed - set(found)
    for names in filter(None, (wanted - {APART}, wanted & {APART})):
        with step("Tempest"):
            found |= run_tests(settings, environment, names)
    known = results.load(results_file(settings)) | found
    results.save(results_file(settings), known)
    report.write(known, results.load(control_file(settings)))
    failed = sorted(name for name, result in found.items() if result.status == "failed")
    for name in failed:
        print(f"FAILED: {name}: {found[name].reason}")
    return len(failed)
