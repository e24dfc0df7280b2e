# SPDX-License-Identifier: Apache-2.0
"""Operations that nova-compute's death interrupted, on Nova's own records and API of networks."""

import copy
import threading
from typing import Any
from unittest import mock

from nova import context as nova_context
from nova.tests.functional import integrated_helpers

from novadocker.virt.docker.migration import nova_records
from novadocker.virt.docker.model import Container
from novadocker.virt.docker.network import device_names, neutron
from novadocker.virt.docker.operations import interrupted
from tests.functional.run import run_test
from tests.functional.test_reverts import SECONDS, Died

EVENTS = {task: (found.action, found.event) for task, found in interrupted.OPERATIONS.items()}


class CutOffPause(integrated_helpers.ProviderUsageBaseTestCase):  # type: ignore[misc]
    """Pauses a server, ends the pause by the records, and deletes the server."""

    __test__ = False
    compute_driver = "fake.MediumFakeDriver"

    def runTest(self) -> None:
        self._start_compute("host1")
        server = self._create_server(networks="none", host="host1")
        uuid = server["id"]
        assert self._cut_off_on("host1") == []
        begun, ended = threading.Event(), threading.Event()
        self.addCleanup(ended.set)

        def dies(*_: Any, **__: Any) -> None:
            begun.set()
            ended.wait()
            raise Died

        with mock.patch.object(self.computes["host1"].driver, "pause", dies):
            self.api.post_server_action(uuid, {"pause": None})
            assert begun.wait(SECONDS)
        assert self._cut_off_on("host2") == []
        assert self._cut_off_on("host1") == [uuid]
        container = Container("id", f"nova-{uuid}", "paused", {})
        interrupted.end(nova_records, "host1", lambda: {uuid: container}, lambda _: None)
        assert self._cut_off_on("host1") == []
        shown = self.admin_api.get_server(uuid)
        assert (shown["status"], shown["OS-EXT-STS:task_state"]) == ("PAUSED", None)
        assert shown["OS-EXT-STS:power_state"] == 3
        assert list(nova_records.deleted([uuid])) == []
        assert nova_records.gone([uuid, "another"], "host1") == set()
        assert nova_records.gone([uuid, "another"], "host2") == {uuid}
        self._delete_server(server)
        assert [found.uuid for found in nova_records.deleted([uuid, "another"])] == [uuid]
        assert nova_records.gone([uuid, "another"], "host1") == {uuid}

    def _cut_off_on(self, host: str) -> list[str]:
        return [found.uuid for found in nova_records.cut_off(host, EVENTS)]


def test_a_pause_that_was_cut_off_ends() -> None:
    result = run_test(CutOffPause())
    assert result.outcome == "passed", result


class CutOffAttachment(integrated_helpers.ProviderUsageBaseTestCase):  # type: ignore[misc]
    """Binds a second port to a server in Neutron, which Nova's cache does not have."""

    __test__ = False
    compute_driver = "fake.MediumFakeDriver"

    def runTest(self) -> None:
        self._start_compute("host1")
        first, second = self.neutron.port_1, copy.deepcopy(self.neutron.port_2)
        server = self._create_server(networks=[{"port": first["id"]}], host="host1")
        second["device_id"] = server["id"]
        self.neutron._ports[second["id"]] = second
        assert self._cached(server) == [first["id"]]
        context = nova_context.get_admin_context()
        instance = device_names.read_instance(context, server["id"])
        found = neutron.refresh_ports(context, instance)
        assert [vif["id"] for vif in found] == [first["id"], second["id"]]
        assert self._cached(server) == [first["id"], second["id"]]

    def _cached(self, server: Any) -> list[str]:
        instance = device_names.read_instance(nova_context.get_admin_context(), server["id"])
        return [vif["id"] for vif in instance.get_network_info()]


def test_an_attachment_that_was_cut_off_reaches_the_cache() -> None:
    result = run_test(CutOffAttachment())
    assert result.outcome == "passed", result
