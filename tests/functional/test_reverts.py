# SPDX-License-Identifier: Apache-2.0
"""A resize revert that nova-compute's death interrupted continues from Nova's own records."""

import threading
from typing import Any
from unittest import mock

import pytest
from nova.tests.functional import integrated_helpers

from novadocker.virt.docker.migration import nova_records
from tests.functional.run import run_test

SECONDS = 60


class Died(BaseException):
    """Ends a thread that simulates a killed process."""


class CutOffRevert(integrated_helpers.ProviderUsageBaseTestCase):  # type: ignore[misc]
    """Migrates a server and interrupts its revert in a method of a host's driver."""

    __test__ = False
    compute_driver = "fake.MediumFakeDriver"

    def __init__(self, host: str, method: str) -> None:
        super().__init__()
        self.host, self.method = host, method

    def runTest(self) -> None:
        for name in ("host1", "host2"):
            self._start_compute(name)
        server = self._create_server(networks="none", host="host1")
        self.api.post_server_action(server["id"], {"migrate": {"host": "host2"}})
        server = self._wait_for_state_change(server, "VERIFY_RESIZE")
        before = self._get_allocations_by_server_uuid(server["id"])
        assert len(before) == 1
        self._cut_off(server)
        nova_records.resume_reverts("host1" if self.host == "host2" else "host2")
        assert self.admin_api.get_server(server["id"])["OS-EXT-STS:task_state"] is not None
        nova_records.resume_reverts(self.host)
        server = self._wait_for_state_change(server, "ACTIVE")
        assert server["OS-EXT-SRV-ATTR:host"] == "host1"
        after = self._get_allocations_by_server_uuid(server["id"])
        assert len(after) == 1
        assert after.keys() != before.keys()
        nova_records.resume_reverts(self.host)

    def _cut_off(self, server: Any) -> None:
        begun, ended = threading.Event(), threading.Event()
        self.addCleanup(ended.set)

        def dies(*_: Any, **__: Any) -> None:
            begun.set()
            ended.wait()
            raise Died

        with mock.patch.object(self.computes[self.host].driver, self.method, dies):
            asked = threading.Thread(
                target=self.api.post_server_action,
                args=(server["id"], {"revertResize": None}),
                daemon=True,
            )
            asked.start()
            assert begun.wait(SECONDS)


@pytest.mark.parametrize(
    ("host", "method"), [("host2", "destroy"), ("host1", "finish_revert_migration")]
)
def test_a_revert_that_was_cut_off_goes_on(host: str, method: str) -> None:
    result = run_test(CutOffRevert(host, method))
    assert result.outcome == "passed", result
