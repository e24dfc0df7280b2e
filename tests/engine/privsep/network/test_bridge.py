# SPDX-License-Identifier: Apache-2.0
"""Ports on Linux bridges: reachability, VLANs, repair, failure, and the deletion of bridges."""

import json
import socket
import struct
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from nova.network import model

from novadocker import exception
from novadocker.conf import CONF
from novadocker.linux import namespaces
from novadocker.privsep.guest import runtime
from novadocker.privsep.network import bridge
from novadocker.virt.docker.network import vif
from tests import waiting
from tests.engine import networks

Plug = Callable[..., str]

INTERFACE = "phys0"
FAR_END = "far0"
FAR_ADDRESS = "10.7.0.1"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def cable(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Connect a veth pair in place of the physical network, whose near end is on the machine.

    Yields the name of the namespace that has the far end.
    """
    far = f"far-{uuid.uuid4().hex[:8]}"
    ip("netns", "add", far)
    ip("link", "add", INTERFACE, "mtu", "1500", "type", "veth", "peer", FAR_END, "netns", far)
    ip("-n", far, "link", "set", FAR_END, "mtu", "1500", "up")
    monkeypatch.setitem(CONF.docker.physical_interface_mappings, "physnet", INTERFACE)
    yield far
    ip("link", "delete", INTERFACE)
    ip("netns", "delete", far)


@pytest.fixture
def plug(cable: str, new_instance_uuid: Callable[[], str]) -> Iterator[Plug]:
    """Yield a function that plugs a new instance's ports; then check that no bridge is left."""
    plugged: dict[str, tuple[model.VIF, ...]] = {}

    def call(*ports: model.VIF) -> str:
        instance_uuid = new_instance_uuid()
        plugged[instance_uuid] = ports
        replug(instance_uuid, *ports)
        return instance_uuid

    yield call
    for instance_uuid, ports in plugged.items():
        unplug(instance_uuid, *ports)
    assert of_kind("bridge") == of_kind("vlan") == []


def replug(instance_uuid: str, *ports: model.VIF) -> None:
    vif.plug_vifs(networks.instance(instance_uuid), model.NetworkInfo(ports))


def unplug(instance_uuid: str, *ports: model.VIF) -> None:
    vif.unplug_vifs(networks.instance(instance_uuid), model.NetworkInfo(ports))
    runtime.delete_namespace(instance_uuid)


def port(address: str, network: str = "a", vlan: int | None = None, **fields: Any) -> model.VIF:
    """Return a port as the mechanism driver binds it."""
    details = {"bridge_name": f"brq{network * 8}-{network * 2}", "physical_network": "physnet"}
    if vlan is not None:
        details["vlan"] = vlan
    # The port is active already, so the driver reports nothing to Neutron.
    return networks.simple_vif(address, type="tap", details=details, active=True, **fields)


def of_kind(kind: str) -> list[str]:
    command = ["ip", "-json", "link", "show", "type", kind]
    shown = subprocess.run(command, capture_output=True, text=True).stdout
    return [link["ifname"] for link in json.loads(shown or "[]") if link]


def knows_vlans() -> bool:
    command = "ip link add probe type bridge && ip link add probe.1 link probe type vlan id 1"
    made = subprocess.run(["unshare", "--net", "sh", "-c", command], capture_output=True)
    return made.returncode == 0


needs_vlans = pytest.mark.skipif(not knows_vlans(), reason="this kernel has no 8021q")


def test_flat_network(cable: str, plug: Plug) -> None:
    ip("-n", cable, "address", "add", f"{FAR_ADDRESS}/24", "dev", FAR_END)
    first = plug(port("10.7.0.5"))
    plug(port("10.7.0.6"))
    assert networks.pings(first, "10.7.0.6")
    assert networks.pings(first, FAR_ADDRESS)
    assert networks.host_device(INTERFACE)["master"] == "brqaaaaaaaa-aa"


def test_host_is_silent_on_the_network(plug: Plug) -> None:
    plug(port("10.7.0.5"))
    shown = subprocess.run(
        ["ip", "-json", "address", "show", "brqaaaaaaaa-aa"], capture_output=True, text=True
    )
    assert json.loads(shown.stdout)[0]["addr_info"] == []


@needs_vlans
def test_vlans_are_apart(cable: str, plug: Plug) -> None:
    ip("-n", cable, "link", "add", "far.100", "link", FAR_END, "type", "vlan", "id", "100")
    ip("-n", cable, "address", "add", f"{FAR_ADDRESS}/24", "dev", "far.100")
    ip("-n", cable, "link", "set", "far.100", "up")
    first = plug(port("10.7.0.5", "a", 100))
    plug(port("10.7.0.6", "a", 100))
    third = plug(port("10.7.0.7", "b", 200))
    assert sorted(of_kind("vlan")) == [f"{INTERFACE}.100", f"{INTERFACE}.200"]
    assert networks.pings(first, "10.7.0.6")
    assert networks.pings(first, FAR_ADDRESS)
    assert not networks.pings(third, "10.7.0.6")
    assert not networks.pings(third, FAR_ADDRESS)


@needs_vlans
def test_device_of_another_vlan_is_left_alone(plug: Plug) -> None:
    ip("link", "add", f"{INTERFACE}.100", "link", INTERFACE, "type", "vlan", "id", "101")
    with pytest.raises(exception.PlugFailed, match="not this VLAN's"):
        plug(port("10.7.0.5", "a", 100))
    ip("link", "delete", f"{INTERFACE}.100")


def test_last_port_takes_the_bridge_along(cable: str, new_instance_uuid: Callable[[], str]) -> None:
    servers = [(new_instance_uuid(), port(f"10.7.0.{digit}")) for digit in (5, 6)]
    for server in servers:
        replug(*server)
    for left, server in zip((["brqaaaaaaaa-aa"], []), servers, strict=True):
        for _ in range(2):
            unplug(*server)
        assert of_kind("bridge") == left
    assert "master" not in networks.host_device(INTERFACE)


def test_plugging_again_changes_nothing(plug: Plug) -> None:
    only = port("10.7.0.5")
    first = plug(only)

    def shown() -> list[Any]:
        links = [networks.host_device(name) for name in (only["devname"], "brqaaaaaaaa-aa")]
        return [(link["ifindex"], link["flags"], link["address"]) for link in links]

    before = shown()
    replug(first, only)
    assert shown() == before


@pytest.mark.parametrize(
    "damage",
    [
        "link delete brqaaaaaaaa-aa",
        "link set brqaaaaaaaa-aa down",
        "link set phys0 down",
        "link set phys0 nomaster",
        "link set {device} nomaster",
        "link delete {device}",
    ],
)
def test_damage_is_repaired(plug: Plug, damage: str) -> None:
    only = port("10.7.0.5")
    first = plug(only)
    second = port("10.7.0.6")
    neighbour = plug(second)
    ip(*damage.format(device=only["devname"]).split())
    replug(first, only)
    replug(neighbour, second)
    assert networks.pings(first, "10.7.0.6")
    assert networks.host_device(INTERFACE)["master"] == "brqaaaaaaaa-aa"


def test_bridge_of_the_operator(plug: Plug, cable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ip("link", "add", "operator0", "type", "bridge")
    ip("link", "set", "operator0", "up")
    ip("address", "add", "10.7.0.9/24", "dev", "operator0")
    monkeypatch.setitem(CONF.docker.physical_interface_mappings, "physnet", "operator0")
    only = port("10.7.0.5")
    first = plug(only)
    assert networks.pings(first, "10.7.0.9")
    assert of_kind("bridge") == ["operator0"]
    unplug(first, only)
    assert of_kind("bridge") == ["operator0"]
    ip("link", "delete", "operator0")


def test_bridge_of_neutrons_agent(plug: Plug) -> None:
    """Nova 31 to 33 pass such a port; the agent adds the uplink and deletes the bridge."""
    only = networks.simple_vif("10.7.0.5", type="bridge", details={})
    only["network"]["bridge"] = "brq01234567-89"
    first = plug(only)
    assert networks.host_device(only["devname"])["master"] == "brq01234567-89"
    unplug(first, only)
    assert of_kind("bridge") == ["brq01234567-89"]
    ip("link", "delete", "brq01234567-89")


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("link set phys0 name other0", "link set other0 name phys0", "no such interface"),
        ("address add 192.0.2.1/24 dev phys0", "address flush dev phys0", "addresses of the host"),
        (
            "address add 2001:db8::1/64 dev phys0 nodad",
            "address del 2001:db8::1/64 dev phys0",
            r"addresses of the host.*net\.ipv6\.conf\.phys0\.accept_ra",
        ),
        (
            "link set phys0 mtu 1400",
            "link set phys0 mtu 1500",
            "MTU of 1450 is more than the interface's 1400",
        ),
        ("link add brqaaaaaaaa-aa type veth", "link delete brqaaaaaaaa-aa", "not a bridge bears"),
    ],
)
def test_fault_names_the_port_and_can_be_mended(
    plug: Plug, new_instance_uuid: Callable[[], str], before: str, after: str, reason: str
) -> None:
    ip(*before.split())
    only, server = port("10.7.0.5"), new_instance_uuid()
    with pytest.raises(exception.PlugFailed, match=reason) as caught:
        replug(server, only)
    assert only["id"] in str(caught.value)
    unplug(server, only)
    ip(*after.split())
    plug(only)
    assert networks.host_device(only["devname"])["master"] == "brqaaaaaaaa-aa"


def accept_routers() -> None:
    """Accept advertisements on the interface, even if the machine forwards packets."""
    Path(f"/proc/sys/net/ipv6/conf/{INTERFACE}/accept_ra").write_text("2")


def advertise(far: str) -> None:
    """Send the advertisement of a prefix (RFC 4861) from the far end."""
    namespaces.enter_namespace_at(f"/run/netns/{far}")
    header = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    prefix = socket.inet_pton(socket.AF_INET6, "2001:db8:7::")
    # The prefix is on the link and serves for addresses; both lifetimes are an hour.
    option = struct.pack("!BBBBIII16s", 3, 4, 64, 0xC0, 3600, 3600, 0, prefix)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sender.sendto(header + option, ("ff02::1", 0, 0, socket.if_nametoindex(FAR_END)))


def has_address() -> bool:
    """Return True if the interface has another address than a link-local one."""
    command = ["ip", "-json", "address", "show", "dev", INTERFACE, "scope", "global"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return any(link.get("addr_info") for link in json.loads(shown))


def test_no_router_gives_the_interface_an_address(cable: str, plug: Plug) -> None:
    accept_routers()
    ip("-n", cable, "address", "add", "fe80::1/64", "dev", FAR_END, "nodad")
    only = port("10.7.0.5")
    unplug(plug(only), only)
    namespaces.run_in_thread(advertise, cable)
    assert not has_address()
    # The interface would accept the advertisement if the driver did not prevent it.
    accept_routers()
    Path(f"/proc/sys/net/ipv6/conf/{INTERFACE}/autoconf").write_text("1")
    namespaces.run_in_thread(advertise, cable)
    waiting.until(has_address)
    with pytest.raises(exception.PlugFailed, match="accept_ra"):
        plug(only)


@needs_vlans
def test_router_on_the_interface_of_a_vlan(cable: str, plug: Plug) -> None:
    accept_routers()
    plug(port("10.7.0.5", "a", 100))
    assert Path(f"/proc/sys/net/ipv6/conf/{INTERFACE}/accept_ra").read_text() == "0\n"


def test_interface_of_the_host_keeps_its_router(cable: str, plug: Plug) -> None:
    accept_routers()
    ip("address", "add", "2001:db8::1/64", "dev", INTERFACE, "nodad")
    with pytest.raises(exception.PlugFailed, match="addresses of the host"):
        plug(port("10.7.0.5"))
    assert Path(f"/proc/sys/net/ipv6/conf/{INTERFACE}/accept_ra").read_text() == "2\n"


def test_interface_in_another_bridge(plug: Plug) -> None:
    plug(port("10.7.0.5", "a"))
    with pytest.raises(exception.PlugFailed, match="in another bridge"):
        plug(port("10.7.0.6", "b"))


def test_servers_come_and_go_at_once(cable: str, new_instance_uuid: Callable[[], str]) -> None:
    def come_and_go(digit: int) -> None:
        server, only = new_instance_uuid(), port(f"10.7.0.{digit}")
        for _ in range(3):
            replug(server, only)
            assert networks.host_device(only["devname"])["master"] == "brqaaaaaaaa-aa"
            unplug(server, only)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(5, 9)))
    assert of_kind("bridge") == []


@pytest.mark.parametrize(
    ("interface", "name"), [("eth1", "eth1.100"), ("enp129s0f1np1", "v3034494e.100")]
)
def test_name_of_a_vlan_device(interface: str, name: str) -> None:
    assert bridge.vlan_device_name(interface, 100) == name
    assert len(bridge.vlan_device_name("a" * 15, 4094)) <= 15
