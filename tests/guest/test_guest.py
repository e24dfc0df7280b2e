# SPDX-License-Identifier: Apache-2.0
"""The engine tests in Debian 13 and Debian 12: their kernels, cgroup v2, systemd, their engines.

Each test of a guest is a subtest here. A test that is skipped in the guest for lack of a kernel
feature fails here, because it would run on no kernel.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import CHECKOUT
from tests.guest import images, machine, session

BRIDGES = "tests/engine/privsep/network/test_bridge.py::"
ENGINE = "tests/engine/engine/test_client.py::"
RECOVER = "tests/engine/recovery/test_recovery.py::"

VIFS = "tests/engine/network/test_vif.py::"
ENFORCEMENT = "tests/engine/limits/test_enforcement.py::"
ISOLATION = "tests/engine/limits/test_isolation.py::"

Suites = Mapping[str, Sequence[str]]
"""pytest's arguments by the name of the suite. The suites of a guest run concurrently."""

SUITES: Mapping[str, Suites] = {
    "trixie": {
        "network": (
            f"{VIFS}test_packets_are_the_kernels",
            f"{VIFS}test_same_network_is_reached_and_another_is_not",
            f"{VIFS}test_device_deleted_behind_the_switch",
            f"{VIFS}test_port_for_which_os_vif_may_create_a_tap[insert_without_device]",
            f"{VIFS}test_trunk_bridge",
            f"{VIFS}test_bridge_for_iptables_between_port_and_switch[None]",
            f"{BRIDGES}test_vlans_are_apart",
            f"{BRIDGES}test_device_of_another_vlan_is_left_alone",
            f"{ENFORCEMENT}test_neutrons_qos_stays_and_the_lower_rate_wins",
        ),
        "limits": (
            f"{ENFORCEMENT}test_everything_changes_under_a_running_server",
            f"{ENGINE}test_limits_are_the_kernels",
            f"{ENGINE}test_swap_is_the_kernels",
            f"{ENGINE}test_usage",
            "tests/engine/limits/test_neighbours.py",
            "tests/engine/exporter/test_exporter.py::test_what_is_told_is_what_the_kernel_has",
            f"{ISOLATION}test_only_devices_that_lead_nowhere",
            f"{ISOLATION}test_nesting_with_the_power_of_the_hosts_root",
            images.SYSTEMD,
        ),
    },
}
"""By Debian: tests that behave differently on another kernel, in a few minutes."""

WHOLE: Mapping[tuple[str, str], Suites] = {
    ("bookworm", "features"): {
        "all": (
            "tests/engine/network/test_vif.py",
            f"{BRIDGES}test_vlans_are_apart",
            f"{BRIDGES}test_device_of_another_vlan_is_left_alone",
            "tests/engine/limits/test_xfs.py",
            "tests/engine/limits/test_neighbours.py",
            "tests/engine/limits/test_enforcement.py",
            "tests/engine/exporter/test_exporter.py",
            f"{ENGINE}test_limits_are_the_kernels",
            f"{ENGINE}test_swap_is_the_kernels",
            f"{ENGINE}test_usage",
            images.SYSTEMD,
            f"{RECOVER}test_a_copy_has_everything_and_differences_are_found[devicemapper]",
            f"{RECOVER}test_a_mount_takes_changes_elsewhere[devicemapper]",
            f"{RECOVER}test_damaged_metadata[devicemapper-cut]",
            f"{RECOVER}test_a_copy_has_everything_and_differences_are_found[devicemapper-off]",
            f"{RECOVER}test_an_image_boots_elsewhere[devicemapper-off]",
            f"{RECOVER}test_a_lost_record_of_a_thin_device[devicemapper-off]",
        ),
    },
    ("trixie", "network"): {
        "network": ("tests/engine/network",),
        "kernel": ("tests/engine/privsep/network",),
    },
    ("trixie", "limits"): {
        "limits": ("tests/engine/limits", "tests/engine/exporter"),
        "runtime": ("tests/engine/runtime",),
    },
    ("trixie", "engine"): {
        "engine": ("tests/engine/engine", "tests/engine/test_events.py", "tests/engine/cmd"),
        "proxy": ("tests/engine/engine_proxy", "tests/engine/containers"),
    },
    ("trixie", "images"): {
        "images": ("tests/engine/images",),
        "guest": ("tests/engine/guest", "tests/engine/privsep/guest"),
    },
    ("trixie", "moves"): {
        "moves": ("tests/engine/migration",),
        "recovery": ("tests/engine/recovery",),
    },
    ("trixie", "operations"): {
        "operations": ("tests/engine/operations",),
        "walk": ("tests/engine/test_soak.py", "--steps=30"),
    },
}
"""By Debian and the name of the guest: on Debian 13 all tests, on Debian 12 some."""

LEFT_OUT = {
    "tests/engine/cmd/test_status.py::test_each_privileged_process_is_started": (
        "the 30 seconds of novadocker-status do not suffice for emulated processors"
    ),
    "tests/engine/engine/test_upgrade.py": "begins with the engine of Debian 12",
    "tests/engine/guest/test_cloud_init.py": "fetches a package, and the guest has no network",
    "tests/engine/runtime/test_nested_engines.py": "builds a Debian from the network",
    "tests/engine/runtime/test_stock_services.py": "builds a Debian from the network",
}
"""Tests that cannot run on the guest's Debian 13, each with the reason."""

ALLOWED_SKIPS = (
    # The machine's kernel has it.
    "cgroup v1",
    # The guest with Debian 12 has it.
    "no storage driver for a device mapper",
    # They depend on options or parameters, not on the kernel.
    "only with --stock",
    "takes no room in the registry",
)
SECONDS = 2400
WHOLE_SECONDS = 7200
TEST_SECONDS = 2400
"""The time of one test in the guest, whose processors are slow."""


@dataclass(frozen=True)
class Outcome:
    """The result of one test in the guest."""

    name: str
    trouble: str
    skipped: str


def outcomes(report: Path) -> list[Outcome]:
    """Return the results in a JUnit report."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        parts = {kind: case.find(kind) for kind in ("failure", "error", "skipped")}
        texts = {
            kind: f"{part.get('message')}\n{part.text or ''}"
            for kind, part in parts.items()
            if part is not None
        }
        found.append(
            Outcome(
                name=f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}",
                trouble=texts.get("failure", "") + texts.get("error", ""),
                skipped=texts.get("skipped", ""),
            )
        )
    return found


@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.skipif(not machine.is_supported(), reason="the guest is an amd64 machine")
@pytest.mark.parametrize("release", SUITES)
def test_guest(pytestconfig: pytest.Config, release: str, subtests: pytest.Subtests) -> None:
    if pytestconfig.getoption("--whole-guest"):
        pytest.skip("the whole guest runs these tests, too")
    run(release, SUITES[release], SECONDS, subtests)


@pytest.mark.timeout(WHOLE_SECONDS + 600)
@pytest.mark.skipif(not machine.is_supported(), reason="the guest is an amd64 machine")
@pytest.mark.parametrize(("release", "name"), WHOLE)
def test_whole_guest(
    pytestconfig: pytest.Config, release: str, name: str, subtests: pytest.Subtests
) -> None:
    if not pytestconfig.getoption("--whole-guest"):
        pytest.skip("runs with --whole-guest only")
    left_out = [option for test in LEFT_OUT for option in ("--deselect", test)]
    suites = {
        suite: (*arguments, *left_out, f"--timeout={TEST_SECONDS}")
        for suite, arguments in WHOLE[release, name].items()
    }
    run(release, suites, WHOLE_SECONDS, subtests)


def test_debian_13_runs_all_engine_tests() -> None:
    folder = CHECKOUT / "tests" / "engine"
    tests = {str(path.relative_to(CHECKOUT)) for path in folder.rglob("test_*.py")}
    chosen = [
        CHECKOUT / argument
        for (release, _), suites in WHOLE.items()
        if release == "trixie"
        for arguments in suites.values()
        for argument in arguments
    ]
    run = {
        test
        for test in tests
        if any((CHECKOUT / test).is_relative_to(argument) for argument in chosen)
    }
    assert tests - run == set()
    assert {test.partition("::")[0] for test in LEFT_OUT} - run == set()


def run(release: str, suites: Suites, seconds: float, subtests: pytest.Subtests) -> None:
    with session.folder() as held:
        results = session.run(held, release, suites, seconds)
        for suite in suites:
            report = results / f"{suite}.xml"
            assert report.exists(), machine.tail(results.parent)
            judge(report, subtests)


def judge(report: Path, subtests: pytest.Subtests) -> None:
    """Report each test of a guest as a subtest."""
    found = outcomes(report)
    assert found
    for outcome in found:
        with subtests.test(outcome.name):
            if outcome.trouble:
                pytest.fail(outcome.trouble, pytrace=False)
            if outcome.skipped and not any(reason in outcome.skipped for reason in ALLOWED_SKIPS):
                pytest.fail(f"skipped in the guest too: {outcome.skipped}", pytrace=False)
