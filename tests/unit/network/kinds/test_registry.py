# SPDX-License-Identifier: Apache-2.0
"""Each VIF has one kind, which determines the attachment of the host device."""

import ast
from pathlib import Path
from typing import Any

import pytest
from nova.network import model

from novadocker.privsep.network.types import Bridge
from novadocker.virt.docker.network import kinds
from novadocker.virt.docker.network.kinds.kind import Plugging
from novadocker.virt.docker.network.kinds.registry import Registry

PORT = "01234567-89ab-cdef-0123-456789abcdef"
TAP = {"bridge_name": "brq01234567-89", "physical_network": "physnet"}


class FakeSwitch:
    """A fake of Open vSwitch that records what is asked of it."""

    def __init__(self, has_port: bool = True) -> None:
        self.asked: list[tuple[str, bool]] = []
        self._has_port = has_port

    def _record(self, name: str, vif: model.VIF) -> None:
        self.asked.append((name, bool(vif.is_hybrid_plug_enabled())))

    def plug(self, _instance: object, vif: model.VIF) -> Any:
        self._record("begin to plug", vif)
        return lambda: self._record("wait", vif)

    def unplug(self, _instance: object, vif: model.VIF) -> None:
        self._record("unplug", vif)

    def has_port(self, vif: model.VIF) -> bool:
        self._record("has port", vif)
        return self._has_port

    def delete_port(self, vif: model.VIF) -> None:
        self._record("delete port", vif)


def registry(switch: FakeSwitch | None = None) -> Registry:
    return Registry(switch or FakeSwitch(), lambda: {"physnet": "eth1"})


def vif(kind: str | None, bridge: str | None = None, **details: Any) -> model.VIF:
    return model.VIF(
        id=PORT,
        type=kind,
        vnic_type="normal",
        details=details,
        network=model.Network(bridge=bridge),
    )


OVS = vif("ovs", datapath_type="system")
HYBRID = vif("ovs", ovs_hybrid_plug=True, datapath_type="system")
# Neutron 29: ML2/OVN binds a port in this way.
OVN = vif("ovs", connectivity="l2", bridge_name="br-int", port_filter=True, ovs_create_tap=True)
SUPPORTED = [
    OVS,
    OVN,
    HYBRID,
    vif("tap", **TAP),
    vif("tap", **TAP, vlan=7),
    vif("bridge", "brqabc"),
]


@pytest.mark.parametrize(
    ("port", "bridge"),
    list(
        zip(
            SUPPORTED,
            [
                None,
                None,
                Bridge("qbr01234567-89"),
                Bridge("brq01234567-89", "eth1"),
                Bridge("brq01234567-89", "eth1", 7),
                Bridge("brqabc"),
            ],
            strict=True,
        )
    ),
)
def test_bridge(port: model.VIF, bridge: Bridge | None) -> None:
    kind = registry().kind_of(port)
    assert kind.refusal(port) is None
    assert kind.bridge(port) == bridge


@pytest.mark.parametrize("port", SUPPORTED)
def test_one_supported_kind_matches(port: model.VIF) -> None:
    found = registry()
    assert [kind for kind in found.supported if kind.matches(port)] == [found.kind_of(port)]


@pytest.mark.parametrize(
    ("port", "reason"),
    [
        (vif("binding_failed"), "binding_failed"),
        (
            vif("vhostuser"),
            "its vif_type is 'vhostuser'; only 'ovs', 'tap' and 'bridge' are supported",
        ),
        (vif("macvtap"), "vif_type is 'macvtap'"),
        (vif(None), "vif_type is None"),
        (vif("bridge", "eth0"), "its bridge is 'eth0'"),
        (vif("bridge"), "its bridge is ''"),
        (vif("tap"), "did not bind it"),
        (vif("tap", **TAP | {"physical_network": "other"}), "physical network 'other'"),
        (model.VIF(id=PORT, type="ovs", vnic_type="direct"), "vnic_type is 'direct'"),
        (model.VIF(id=PORT, type="binding_failed", vnic_type="direct"), "binding_failed"),
    ],
)
def test_refusal(port: model.VIF, reason: str) -> None:
    assert reason in (registry().kind_of(port).refusal(port) or "")


@pytest.mark.parametrize(
    ("port", "plugging", "reported", "devices"),
    [
        (OVS, Plugging.AFTER_WIRING, False, ()),
        (
            HYBRID,
            Plugging.BEFORE_WIRING,
            False,
            ("qbr01234567-89", "qvb01234567-89", "qvo01234567-89"),
        ),
        (vif("tap", **TAP), Plugging.NEVER, True, ()),
        (vif("bridge", "brqabc"), Plugging.NEVER, False, ()),
    ],
)
def test_description(
    port: model.VIF, plugging: Plugging, reported: bool, devices: tuple[str, ...]
) -> None:
    kind = registry().kind_of(port)
    assert (kind.plugging, kind.reported, kind.devices(port)) == (plugging, reported, devices)


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        (OVS, False),
        (OVN, False),
        (HYBRID, False),
        (vif("ovs", datapath_type="netdev"), True),
        (vif("ovs", ovs_hybrid_plug=True, datapath_type="netdev"), True),
        (model.VIF(id=PORT, type="ovs", vnic_type="normal", details=None), False),
        (vif("tap", **TAP), False),
        (vif("bridge", "brqabc"), False),
    ],
)
def test_software_checksums(port: model.VIF, expected: bool) -> None:
    assert registry().kind_of(port).software_checksums(port) is expected


@pytest.mark.parametrize(("port", "hybrid"), [(OVS, False), (HYBRID, True)])
def test_the_other_firewall_of_a_port(port: model.VIF, hybrid: bool) -> None:
    found = registry()
    other = found.kind_of(port).other_form(port)
    assert other is not None
    assert other["details"] == {"ovs_hybrid_plug": not hybrid, "datapath_type": "system"}
    assert port["details"].get("ovs_hybrid_plug", False) is hybrid
    back = found.kind_of(other).other_form(other)
    assert back is not None
    assert back["details"]["ovs_hybrid_plug"] is hybrid


def steps(port: model.VIF, has_port: bool = True) -> dict[str, list[str]]:
    """Return the requests that each step of a VIF's kind sends to the switch."""
    found = {}
    for name in ("plug", "unplug", "unplug_stale", "replug"):
        switch = FakeSwitch(has_port)
        result = getattr(registry(switch).kind_of(port), name)(None, port)
        if result:
            result()
        found[name] = [request for request, _ in switch.asked]
    return found


def test_steps_of_open_vswitch() -> None:
    expected = {
        "plug": ["begin to plug", "wait"],
        "unplug": ["unplug"],
        "unplug_stale": ["has port", "unplug"],
        "replug": ["delete port", "begin to plug", "wait"],
    }
    assert steps(OVS) == expected
    assert steps(OVS, has_port=False) == {**expected, "unplug_stale": ["has port"]}


def test_steps_of_hybrid_plug() -> None:
    assert steps(HYBRID) == {
        "plug": ["begin to plug", "wait"],
        "unplug": ["unplug"],
        "unplug_stale": ["unplug"],
        "replug": [],
    }


@pytest.mark.parametrize(
    "port",
    [
        vif("tap", **TAP),
        vif("bridge", "brqabc"),
        vif("binding_failed"),
        vif("vhostuser"),
        model.VIF(id=PORT, type="ovs", vnic_type="direct"),
    ],
)
def test_other_kinds_ask_nothing_of_the_switch(port: model.VIF) -> None:
    assert steps(port) == {"plug": [], "unplug": [], "unplug_stale": [], "replug": []}
    assert registry().kind_of(port).other_form(port) is None


def reads_of_the_binding(path: Path) -> list[str]:
    """Return the places of a module that ask for the type or the details of a VIF."""
    return [
        f"{path.name}:{node.lineno}"
        for node in ast.walk(ast.parse(path.read_text()))
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.slice, ast.Constant)
            and node.slice.value in ("type", "details", "vnic_type")
        )
        or (
            isinstance(node, ast.Attribute)
            and (node.attr.startswith("VIF_TYPE_") or node.attr == "is_hybrid_plug_enabled")
        )
    ]


def test_only_the_kinds_read_the_binding_of_a_vif() -> None:
    directory = Path(kinds.__file__).parent
    driver = directory.parents[1]
    for name in ("kind.py", "tap.py", "open_vswitch.py", "refused.py"):
        assert reads_of_the_binding(directory / name)
    others = [path for path in driver.rglob("*.py") if path.parent != directory]
    assert len(others) > 50
    assert [place for path in others for place in reads_of_the_binding(path)] == []
