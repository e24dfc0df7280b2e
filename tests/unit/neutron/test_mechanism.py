# SPDX-License-Identifier: Apache-2.0
"""Bindings and refusals of the mechanism driver, and its provisioning blocks, without Neutron."""

import importlib
import logging
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from oslo_config import cfg

from novadocker.neutron import options

# This package is an extra, which the environments of older releases of Nova lack.
pytest.importorskip("neutron_lib.plugins.ml2.api")

# Neutron imports eventlet, which Nova forbids in its process, and needs a database.
BLOCKS = ModuleType("provisioning_blocks")
BLOCKS.L2_AGENT_ENTITY = "L2"  # type: ignore[attr-defined]
STATUS = ModuleType("data_plane_status")
NEUTRON = {
    "neutron.db": SimpleNamespace(provisioning_blocks=BLOCKS),
    "neutron.objects.port.extensions": SimpleNamespace(data_plane_status=STATUS),
}

with pytest.MonkeyPatch.context() as stubbed:
    for name, module in NEUTRON.items():
        stubbed.setitem(sys.modules, name, module)
    mechanism = importlib.import_module("novadocker.neutron.mechanism")

NETWORK = "0123456789ab-cdef"
VLAN = {"id": "s1", "network_type": "vlan", "physical_network": "physnet", "segmentation_id": 7}
FLAT = {"id": "s2", "network_type": "flat", "physical_network": "other", "segmentation_id": None}
VXLAN = {"id": "s3", "network_type": "vxlan", "physical_network": None, "segmentation_id": 9}


@pytest.fixture(autouse=True)
def configuration() -> Iterator[Any]:
    # A test may have another one in its place until its end.
    configuration = cfg.CONF
    options.register_opts(configuration)
    configuration.set_override("hosts", ["compute-*"], group="ml2_novadocker")
    yield configuration
    for option in options.OPTIONS:
        configuration.clear_override(option.name, group="ml2_novadocker")


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the calls that add and remove provisioning blocks."""
    calls: list[str] = []
    for name in (
        "add_provisioning_component",
        "remove_provisioning_component",
        "provisioning_complete",
    ):
        monkeypatch.setattr(
            BLOCKS,
            name,
            lambda _context, _port, _kind, entity, name=name: calls.append(f"{name} {entity}"),
            raising=False,
        )
    statuses = SimpleNamespace(
        delete_objects=lambda _context, port_id: calls.append(f"forget {port_id}")
    )
    monkeypatch.setattr(STATUS, "PortDataPlaneStatus", statuses, raising=False)
    return calls


def port(**fields: Any) -> dict[str, Any]:
    return {
        "id": "p1",
        "network_id": NETWORK,
        "status": "DOWN",
        "device_owner": "compute:nova",
        "port_security_enabled": False,
        "binding:vnic_type": "normal",
        "binding:vif_type": "tap",
        "binding:host_id": "compute-1",
        "data_plane_status": None,
    } | {key.replace("__", ":"): value for key, value in fields.items()}


class Context(SimpleNamespace):
    """A port context as ML2 passes it to a driver."""

    def __init__(self, *segments: dict[str, Any], **fields: Any) -> None:
        super().__init__(
            **{
                "host": "compute-1",
                "current": port(),
                "original": port(),
                "vif_type": "tap",
                "original_vif_type": "unbound",
                "plugin_context": None,
                "segments_to_bind": list(segments),
                "bound": None,
            }
            | fields
        )

    def set_binding(self, *binding: Any) -> None:
        assert self.bound is None
        self.bound = binding


def bound(context: Context) -> Any:
    mechanism.BridgeMechanismDriver().bind_port(context)
    return context.bound


def test_vlan() -> None:
    assert bound(Context(VXLAN, VLAN, FLAT)) == (
        "s1",
        "tap",
        {
            "port_filter": False,
            "connectivity": "l2",
            "bridge_name": "brq0123456789a",
            "physical_network": "physnet",
            "vlan": 7,
        },
    )


def test_flat() -> None:
    segment, _, details = bound(Context(FLAT))
    assert (segment, details["physical_network"], "vlan" in details) == ("s2", "other", False)


@pytest.mark.parametrize(
    "context",
    [
        Context(VXLAN),
        Context(),
        Context(VLAN, host="network-1"),
        Context(VLAN, current=port(binding__vnic_type="direct")),
        Context(VLAN, current=port(device_owner="network:dhcp")),
    ],
)
def test_left_to_others(context: Context) -> None:
    assert bound(context) is None


def test_only_the_physical_networks_named(configuration: Any) -> None:
    configuration.set_override("physical_networks", ["other"], group="ml2_novadocker")
    assert bound(Context(VLAN, FLAT))[0] == "s2"


def test_port_security(configuration: Any, caplog: pytest.LogCaptureFixture) -> None:
    secure = port(port_security_enabled=True)
    with caplog.at_level(logging.WARNING):
        assert bound(Context(VLAN, current=secure)) is None
    assert "p1" in caplog.text
    assert "[ml2_novadocker]allow_port_security" in caplog.text
    configuration.set_override("allow_port_security", True, group="ml2_novadocker")
    assert bound(Context(VLAN, current=secure)) is not None


@pytest.mark.parametrize(
    ("context", "calls"),
    [
        (
            Context(),
            ["add_provisioning_component NOVADOCKER", "remove_provisioning_component L2"],
        ),
        (Context(original_vif_type="tap"), []),
        (Context(current=port(status="ACTIVE")), []),
        (Context(current=port(binding__vif_type="ovs"), vif_type="ovs"), []),
        (Context(current=port(binding__host_id="other-1")), []),
        (Context(vif_type="unbound"), ["remove_provisioning_component NOVADOCKER"]),
        (
            Context(vif_type="unbound", current=port(data_plane_status="ACTIVE")),
            ["remove_provisioning_component NOVADOCKER", "forget p1"],
        ),
    ],
)
def test_block(blocks: list[str], context: Context, calls: list[str]) -> None:
    mechanism.BridgeMechanismDriver().update_port_precommit(context)
    assert blocks == calls


@pytest.mark.parametrize(
    ("before", "now", "calls"),
    [
        (port(), port(data_plane_status="ACTIVE"), ["provisioning_complete NOVADOCKER"]),
        (port(data_plane_status="ACTIVE"), port(data_plane_status="ACTIVE"), []),
        (port(), port(data_plane_status="DOWN"), []),
        (port(), port(data_plane_status="ACTIVE", binding__vif_type="ovs"), []),
        (port(), port(data_plane_status="ACTIVE", binding__host_id="other-1"), []),
    ],
)
def test_report(
    blocks: list[str], before: dict[str, Any], now: dict[str, Any], calls: list[str]
) -> None:
    context = Context(current=now, original=before)
    mechanism.BridgeMechanismDriver().update_port_postcommit(context)
    assert blocks == calls


def test_neutron_does_not_start_without_a_way_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(mechanism.StatusExtensionMissing, match="data_plane_status"):
        start(["port_security"], monkeypatch)
    start(["port_security", "data_plane_status"], monkeypatch)


def start(extension_drivers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ml2 = SimpleNamespace(extension_drivers=extension_drivers)
    monkeypatch.setattr(mechanism.cfg, "CONF", SimpleNamespace(ml2=ml2))
    monkeypatch.setattr(options, "register_opts", lambda _configuration: None)
    mechanism.BridgeMechanismDriver().initialize()
