# SPDX-License-Identifier: Apache-2.0
"""The order in which the VIFs of an instance are wired and plugged."""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
from nova.network import model
from oslo_privsep import comm, daemon

from novadocker import exception
from novadocker.virt.docker.network import metadata
from novadocker.virt.docker.network import vif as network_vif
from novadocker.virt.docker.network.kinds.registry import Registry


def port(number: int, kind: str = "ovs", **details: Any) -> model.VIF:
    return model.VIF(
        id=f"{number}1234567-89ab-cdef-0123-456789abcdef",
        address=f"fa:16:3e:00:00:0{number}",
        type=kind,
        devname=f"tap{number}",
        vnic_type="normal",
        active=False,
        details=details,
        network=model.Network(bridge="brqabc", subnets=[]),
    )


PLAIN, SECOND = port(1), port(2)
HYBRID = port(3, ovs_hybrid_plug=True)
TAP = port(4, "tap", bridge_name="brq1", physical_network="physnet")
BRIDGE = port(5, "bridge")
REFUSED = port(6, "vhostuser")
FOREIGN_TAP = port(7, "tap")
SERVICE = metadata.ServicePort("net", "network:dhcp", "dhcp1", ("10.0.0.2",))
HYBRID_DEVICES = {f"{prefix}{HYBRID['id']}"[:14] for prefix in ("qbr", "qvb", "qvo")}


class FakeHost:
    """A fake of the switch and of the network namespaces, with the order of the requests."""

    def __init__(self, devices: Sequence[str] = (), anew: Sequence[model.VIF] = ()) -> None:
        self.done: list[str] = []
        self.services: list[metadata.ServicePort] | None = [SERVICE]
        self.bridges: dict[str, Any] = {}
        self.software_checksums: set[str] = set()
        self.reported: list[str] = []
        self.failing: dict[str, Exception] = {}
        self._devices = devices
        self._anew = tuple(vif["id"] for vif in anew)
        registry = Registry(self, lambda: {"physnet": "eth1"})
        self.plugger = network_vif.Plugger(
            registry.kind_of, self, self.report_wired, lambda: self._devices, self.service_ports
        )

    def service_ports(self, networks: Sequence[str]) -> Sequence[metadata.ServicePort] | None:
        return self.services if networks == (SERVICE.network_id,) else []

    def _do(self, step: str) -> None:
        self.done.append(step)
        if step in self.failing:
            raise self.failing[step]

    def plug(self, _instance: object, vif: model.VIF) -> Callable[[], None]:
        self.done.append(f"begin to plug {vif['devname']}")
        return lambda: self._do(f"plug {vif['devname']}")

    def unplug(self, _instance: object, vif: model.VIF) -> None:
        self._do(f"unplug {vif['devname']}")

    def has_port(self, vif: model.VIF) -> bool:
        return True

    def delete_port(self, vif: model.VIF) -> None:
        self._do(f"delete port {vif['devname']}")

    def wire_nics(
        self, instance_uuid: str, nics: Sequence[Mapping[str, Any]], keep_own: bool
    ) -> tuple[str, ...]:
        self._do("wire")
        self.bridges = {nic["host_device"]: nic["bridge"] for nic in nics}
        self.routes = [route["destination"] for nic in nics for route in nic["routes"]]
        self.unknown = {name for nic in nics for name in nic["unknown_destinations"]}
        self.software_checksums = {nic["host_device"] for nic in nics if nic["software_checksums"]}
        return self._anew

    def unwire_nic(
        self, instance_uuid: str, host_device: str, bridge: Mapping[str, Any] | None = None
    ) -> None:
        self.bridges[host_device] = bridge
        self._do(f"unwire {host_device}")

    def silence_nics(self, instance_uuid: str, host_devices: Sequence[str]) -> None:
        self._do(f"silence {host_devices}")

    def announce_nics(self, instance_uuid: str, guest_devices: Sequence[str]) -> None:
        self._do(f"announce {guest_devices}")

    def report_wired(self, _instance: object, vifs: Any) -> None:
        self.reported = [vif["devname"] for vif in vifs]


def info(*ports: model.VIF) -> model.NetworkInfo:
    return model.NetworkInfo(ports)


def test_new_ports(instance: Any) -> None:
    host = FakeHost(anew=[PLAIN, HYBRID, SECOND, TAP, BRIDGE])
    host.plugger.plug_vifs(instance, info(PLAIN, HYBRID, SECOND, TAP, BRIDGE))
    assert host.done == [
        "unplug tap3",
        "unplug tap1",
        "unplug tap2",
        "begin to plug tap3",
        "plug tap3",
        "wire",
        "begin to plug tap1",
        "begin to plug tap2",
        "plug tap2",
        "plug tap1",
    ]
    assert {device: bridge and bridge["name"] for device, bridge in host.bridges.items()} == {
        "tap1": None,
        "tap2": None,
        "tap3": HYBRID["id"] and f"qbr{HYBRID['id']}"[:14],
        "tap4": "brq1",
        "tap5": "brqabc",
    }
    assert host.reported == ["tap4"]


def test_route_to_the_metadata_service(instance: Any, network_info: model.NetworkInfo) -> None:
    (subnet,) = network_info[0]["network"]["subnets"]
    host = FakeHost()
    for has_dhcp in (False, True):
        subnet["meta"]["enable_dhcp"] = has_dhcp
        host.plugger.plug_vifs(instance, network_info)
        assert ("169.254.169.254/32" in host.routes) is has_dhcp


def test_route_by_a_dhcp_server_that_appears_during_the_build(
    instance: Any, network_info: model.NetworkInfo
) -> None:
    (subnet,) = network_info[0]["network"]["subnets"]
    subnet["meta"]["enable_dhcp"] = True
    host = FakeHost()
    host.services = []
    host.plugger.plug_vifs(instance, network_info)
    assert "169.254.169.254/32" not in host.routes
    host.services = [SERVICE]
    host.plugger.complete_routes(instance, network_info)
    assert "169.254.169.254/32" in host.routes
    host.done.clear()
    host.plugger.complete_routes(instance, network_info)
    assert host.done == []


def test_route_to_the_metadata_service_stays_while_neutron_does_not_answer(
    instance: Any, network_info: model.NetworkInfo
) -> None:
    (subnet,) = network_info[0]["network"]["subnets"]
    subnet["meta"]["enable_dhcp"] = True
    host = FakeHost()
    host.services = None
    host.plugger.plug_vifs(instance, network_info)
    assert (host.routes.count("169.254.169.254/32"), host.unknown) == (0, {"169.254.169.254/32"})
    host.services = [SERVICE]
    host.plugger.complete_routes(instance, network_info)
    assert (host.routes.count("169.254.169.254/32"), host.unknown) == (1, set())


def test_kinds_determine_the_checksums(instance: Any) -> None:
    host, userspace = FakeHost(), port(8, datapath_type="netdev")
    host.plugger.plug_vifs(instance, info(PLAIN, userspace))
    assert host.software_checksums == {"tap8"}


def test_a_port_that_neutron_has_up_is_not_reported(instance: Any) -> None:
    host, active = FakeHost(), port(4, "tap", **TAP["details"])
    active["active"] = True
    host.plugger.plug_vifs(instance, info(active))
    assert host.reported == []


def test_ports_that_are_there_already(instance: Any) -> None:
    host = FakeHost(["tap1", "tap3", *HYBRID_DEVICES])
    host.plugger.plug_vifs(instance, info(PLAIN, HYBRID))
    assert host.done == [
        "begin to plug tap3",
        "plug tap3",
        "wire",
        "begin to plug tap1",
        "plug tap1",
    ]


def test_devices_that_wiring_replaced(instance: Any) -> None:
    host = FakeHost(["tap1", "tap3", *HYBRID_DEVICES], anew=[PLAIN, TAP])
    host.plugger.plug_vifs(instance, info(PLAIN, HYBRID, TAP))
    assert host.done == [
        *("begin to plug tap3", "plug tap3", "wire"),
        "unplug tap1",
        *("begin to plug tap3", "plug tap3", "wire"),
        *("begin to plug tap1", "plug tap1"),
    ]


@pytest.mark.parametrize("lost", sorted(HYBRID_DEVICES))
def test_a_device_between_port_and_switch_is_lost(instance: Any, lost: str) -> None:
    host = FakeHost(["tap3", *(HYBRID_DEVICES - {lost})])
    host.plugger.plug_vifs(instance, info(HYBRID))
    assert host.done == ["unplug tap3", "begin to plug tap3", "plug tap3", "wire"]


def test_every_port_is_awaited_when_one_fails(instance: Any) -> None:
    host = FakeHost(["tap1", "tap2"])
    host.failing["plug tap2"] = exception.PlugFailed(port_id=SECOND["id"], reason="refused")
    with pytest.raises(exception.PlugFailed, match="refused"):
        host.plugger.plug_vifs(instance, info(PLAIN, SECOND))
    assert host.done[-2:] == ["plug tap2", "plug tap1"]


def test_refused_before_anything_is_done(instance: Any) -> None:
    host = FakeHost()
    with pytest.raises(exception.PlugFailed, match="vhostuser") as caught:
        host.plugger.plug_vifs(instance, info(PLAIN, REFUSED))
    assert REFUSED["id"] in str(caught.value)
    assert host.done == []


def test_plugged_while_the_block_runs(instance: Any) -> None:
    host, wired = FakeHost(), threading.Event()
    host.wire_nics = lambda *_: wired.set() or ()  # type: ignore[method-assign, func-returns-value]
    with host.plugger.plugged_vifs(instance, info(PLAIN)):
        assert wired.wait(10)
    assert host.done[-1] == "plug tap1"


def test_prepared_before_the_first_vif(instance: Any) -> None:
    host = FakeHost()
    prepare = partial(host.done.append, "prepare")
    with host.plugger.plugged_vifs(instance, info(PLAIN), prepare=prepare):
        pass
    assert host.done[0] == "prepare"
    assert "wire" in host.done


def test_a_vif_is_not_wired_without_what_it_needs(instance: Any) -> None:
    host = FakeHost()
    prepare = Mock(side_effect=exception.PlugFailed(port_id=PLAIN["id"], reason="no ids"))
    with (
        pytest.raises(exception.PlugFailed, match="no ids"),
        host.plugger.plugged_vifs(instance, info(PLAIN), prepare=prepare),
    ):
        pass
    assert host.done == []


def test_replug(instance: Any) -> None:
    host = FakeHost()
    host.plugger.replug_vifs(instance, info(PLAIN, HYBRID, TAP))
    assert host.done == ["delete port tap1", "begin to plug tap1", "plug tap1"]


@pytest.mark.parametrize(
    ("devices", "other_form"),
    [([], []), (["tap1"], []), ([f"qvo{PLAIN['id']}"[:14]], ["unplug tap1"])],
)
def test_unplug(instance: Any, devices: list[str], other_form: list[str]) -> None:
    host = FakeHost(devices)
    host.plugger.unplug_vifs(instance, info(PLAIN, TAP, REFUSED, FOREIGN_TAP))
    assert host.done == [
        *("unplug tap1", *other_form, "unwire tap1"),
        *("unwire tap4", "unwire tap6", "unwire tap7"),
    ]
    assert host.bridges["tap1"] is None
    assert host.bridges["tap4"] == {"name": "brq1", "interface": "eth1", "vlan": None}
    assert host.bridges["tap6"] is host.bridges["tap7"] is None


def test_unplug_hybrid(instance: Any) -> None:
    host = FakeHost()
    host.plugger.unplug_vifs(instance, info(HYBRID))
    # The second removes the port as a host with the firewall openvswitch has it.
    assert host.done == ["unplug tap3", "unplug tap3", "unwire tap3"]


def test_every_step_of_unplugging_is_attempted(instance: Any) -> None:
    host = FakeHost()
    host.failing["unplug tap1"] = exception.PlugFailed(port_id=PLAIN["id"], reason="refused")
    host.failing["unwire tap1"] = OSError("busy")
    with pytest.raises(exception.PlugFailed, match="refused"):
        host.plugger.unplug_vifs(instance, info(PLAIN, SECOND))
    assert host.done == ["unplug tap1", "unwire tap1", "unplug tap2", "unwire tap2"]
    del host.failing["unplug tap1"]
    with pytest.raises(exception.PlugFailed, match="busy") as caught:
        host.plugger.unplug_vifs(instance, info(PLAIN))
    assert PLAIN["id"] in str(caught.value)


def test_silence_and_announce(instance: Any) -> None:
    host = FakeHost()
    host.plugger.silence_vifs(instance, info(PLAIN, SECOND))
    host.plugger.announce_vifs(instance, info(PLAIN, SECOND))
    assert host.done == ["silence ['tap1', 'tap2']", "announce ['eth0', 'eth1']"]
    host.plugger.silence_vifs(instance, info())
    host.plugger.announce_vifs(instance, info())
    assert len(host.done) == 2


@pytest.mark.parametrize(
    "failure", [comm.PrivsepTimeout("60 s"), daemon.FailedToDropPrivileges("sudo refuses")]
)
def test_an_unanswered_call_names_the_port(instance: Any, failure: Exception) -> None:
    """A start of nova-compute goes on after PlugFailed only."""
    host = FakeHost()
    host.failing = {"wire": failure, "unwire tap1": failure}
    for method in (host.plugger.plug_vifs, host.plugger.unplug_vifs):
        with pytest.raises(exception.PlugFailed, match=f"port {PLAIN['id']}: {failure}"):
            method(instance, info(PLAIN))


@pytest.mark.parametrize(
    "failure",
    [
        InterruptedError("the kernel's list changed during each attempt"),
        ValueError("'None/32' is no address"),
    ],
)
def test_a_state_that_cannot_be_read_names_the_port(instance: Any, failure: Exception) -> None:
    host = FakeHost()
    host.failing = {"wire": failure}
    with pytest.raises(exception.PlugFailed, match=f"port {PLAIN['id']}: {failure}"):
        host.plugger.plug_vifs(instance, info(PLAIN))
