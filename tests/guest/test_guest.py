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

from tests.guest import images, machine, session

BRIDGES = "tests/engine/privsep/network/test_bridge.py::"
ENGINE = "tests/engine/engine/test_client.py::"
RECOVER = "tests/engine/recovery/test_recovery.py::"

VIFS = "tests/engine/network/test_vif.py::"
ENFORCEMENT = "tests/engine/limits/test_enforcement.py::"
ISOLATION = "tests/engine/limits/test_isolation.py::"

Suites = Mapping[str, Mapping[str, Sequence[str]]]

SUITES: Suites = {
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
"""By Debian and name: tests that behave differently on another kernel, in a few minutes."""

WHOLE_SUITES: Suites = {
    "bookworm": {
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
    "trixie": {
        "network": (
            "tests/engine/network/test_ovs.py",
            "tests/engine/network/test_vif.py",
            "tests/engine/privsep/network",
            "tests/engine/operations/test_ports.py",
        ),
        "limits": (
            "tests/engine/limits",
            "tests/engine/exporter",
            "tests/engine/engine/test_client.py",
            "tests/engine/runtime/test_runtime_shim.py",
            "tests/engine/runtime/test_user_namespaces.py",
            images.SYSTEMD,
        ),
    },
}
"""By Debian and name: all tests that may behave differently there."""

ALLOWED_SKIP = "cgroup v1"
SECONDS = 900
WHOLE_SECONDS = 5400


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


@pytest.mark.timeout(WHOLE_SECONDS + 600)
@pytest.mark.skipif(not machine.is_supported(), reason="the guest is an amd64 machine")
@pytest.mark.parametrize("release", images.PYTHONS)
def test_guest(pytestconfig: pytest.Config, release: str, subtests: pytest.Subtests) -> None:
    whole = pytestconfig.getoption("--whole-guest")
    chosen, seconds = (WHOLE_SUITES, WHOLE_SECONDS) if whole else (SUITES, SECONDS)
    if release not in chosen:
        pytest.skip("runs with --whole-guest only")
    with session.folder() as held:
        results = session.run(held, release, chosen[release], seconds)
        for suite in chosen[release]:
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
            if outcome.skipped and ALLOWED_SKIP not in outcome.skipped:
                pytest.fail(f"skipped in the guest too: {outcome.skipped}", pytrace=False)
