# SPDX-License-Identifier: Apache-2.0
"""Control: Nova's functional tests use this driver, not the fake driver that they name."""

import pytest
from nova.tests.functional import integrated_helpers

from novadocker import exception
from tests.functional.run import Result, load, run_test
from tests.functional.stage import StagedDriver

BOOTS = (
    "test_servers.ServersTest.test_create_and_delete_server",
    "test_servers.ServersTest.test_create_and_rebuild_server",
)


class Hypervisor(integrated_helpers.ProviderUsageBaseTestCase):  # type: ignore[misc]
    """A test in the form of Nova's own, which reads the hypervisor's type from Nova."""

    __test__ = False
    compute_driver = "fake.MediumFakeDriver"

    def runTest(self) -> None:
        self._start_compute("host1")
        server = self._create_server(networks="none")
        host = self.admin_api.api_get("/os-hypervisors/detail").body["hypervisors"]
        assert [found["hypervisor_type"] for found in host] == ["docker"]
        assert server["OS-EXT-SRV-ATTR:host"] == "host1"
        assert isinstance(self.computes["host1"].driver, StagedDriver)


def outcomes(names: tuple[str, ...]) -> list[Result]:
    return [run_test(test) for name in names for test in load(name)]


def test_nova_says_that_its_hypervisor_is_docker():
    result = run_test(Hypervisor())
    assert (result.outcome, result.booted) == ("passed", 1), result


def test_tests_that_boot_are_red_when_the_driver_is_broken(monkeypatch: pytest.MonkeyPatch):
    assert [(each.outcome, each.booted > 0) for each in outcomes(BOOTS)] == [("passed", True)] * 2

    def fail(self: object, *_args: object, **_arguments: object) -> None:
        raise exception.StartFailed(instance_uuid="any", reason="the control breaks the driver")

    monkeypatch.setattr(StagedDriver, "spawn", fail)
    assert [(each.outcome, each.booted) for each in outcomes(BOOTS)] == [("failed", 0)] * 2
