# SPDX-License-Identifier: Apache-2.0
"""Neutron's binding of a port determines the attachment of its host device."""

from typing import Any

import pytest
from neutronclient.common import exceptions as neutron_exceptions
from nova.network import model

from novadocker.privsep.network.types import Bridge
from novadocker.virt.docker.network import binding, neutron

INTERFACES = {"physnet": "eth1"}
PORT = "01234567-89ab-cdef-0123-456789abcdef"
TAP = {"bridge_name": "brq01234567-89", "physical_network": "physnet"}


def vif(kind: str | None, bridge: str | None = None, **details: Any) -> model.VIF:
    return model.VIF(
        id=PORT,
        type=kind,
        vnic_type="normal",
        details=details,
        network=model.Network(bridge=bridge),
    )


@pytest.mark.parametrize(
    ("port", "bridge"),
    [
        (vif("ovs"), None),
        (vif("ovs", ovs_hybrid_plug=True), Bridge("qbr01234567-89")),
        (vif("tap", **TAP), Bridge("brq01234567-89", "eth1")),
        (vif("tap", **TAP, vlan=7), Bridge("brq01234567-89", "eth1", 7)),
        (vif("bridge", "brqabc"), Bridge("brqabc")),
    ],
)
def test_bridge(port: model.VIF, bridge: Bridge | None) -> None:
    assert binding.refusal(port, INTERFACES) is None
    assert binding.bridge_of(port, INTERFACES) == bridge


@pytest.mark.parametrize(
    ("port", "reason"),
    [
        (vif("binding_failed"), "binding_failed"),
        (vif("vhostuser"), "vif_type is 'vhostuser'"),
        (vif("macvtap"), "vif_type is 'macvtap'"),
        (vif(None), "vif_type is None"),
        (vif("bridge", "eth0"), "its bridge is 'eth0'"),
        (vif("bridge"), "its bridge is ''"),
        (vif("tap"), "did not bind it"),
        (vif("tap", **TAP | {"physical_network": "other"}), "physical network 'other'"),
        (model.VIF(id=PORT, type="ovs", vnic_type="direct"), "vnic_type is 'direct'"),
    ],
)
def test_refusal(port: model.VIF, reason: str) -> None:
    assert reason in (binding.refusal(port, INTERFACES) or "")


class Client:
    """A fake of Neutron's client, which refuses the first report."""

    def __init__(self) -> None:
        self.reported: list[tuple[str, Any]] = []

    def update_port(self, port: str, body: Any) -> None:
        self.reported.append((port, body))
        if len(self.reported) == 1:
            raise neutron_exceptions.Forbidden(message="not allowed")


def test_report_that_fails_is_logged_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client()
    monkeypatch.setattr(neutron.neutron, "get_client", lambda _context, admin: client)
    neutron.report_wired(None, [vif("tap"), vif("tap")])
    assert client.reported == [(PORT, {"port": {"data_plane_status": "ACTIVE"}})] * 2
    assert f"port {PORT} is wired: not allowed" in caplog.text


@pytest.mark.parametrize("hybrid", [False, True])
def test_the_other_firewall_of_a_port(hybrid: bool) -> None:
    port = vif("ovs", ovs_hybrid_plug=hybrid, datapath_type="system")
    other = binding.other_form(port)
    assert other is not None
    assert other["details"] == {"ovs_hybrid_plug": not hybrid, "datapath_type": "system"}
    assert binding.is_hybrid(port) is hybrid
    assert binding.other_form(vif("tap", **TAP)) is None
