# SPDX-License-Identifier: Apache-2.0
"""Ports on a real Open vSwitch: reachability, isolation, repair and failure."""

import copy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import os_vif
import pytest
from nova.network import model

from novadocker import exception
from novadocker.conf import CONF
from novadocker.linux import namespaces
from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from novadocker.virt.docker.network import vif as network_vif
from tests.engine import networks
from tests.engine.switch import BRIDGE, DATAPATH, Switch

Plug = Callable[..., str]


@pytest.fixture
def plug(ovs: Switch, new_instance_uuid: Callable[[], str]) -> Iterator[Plug]:
    """Yield a function that plugs and tags a new instance's ports; unplug them at the end."""
    plugged: dict[str, tuple[model.VIF, ...]] = {}

    def call(*ports: model.VIF, tag: int = 1) -> str:
        uuid = new_instance_uuid()
        plugged[uuid] = ports
        network_vif.plug_vifs(networks.instance(uuid), model.NetworkInfo(ports))
        for port in ports:
            # Neutron's agent sets the tag.
            ovs.vsctl("set", "Port", port["devname"], f"tag={tag}")
        return uuid

    yield call
    for uuid, ports in plugged.items():
        network_vif.unplug_vifs(networks.instance(uuid), model.NetworkInfo(ports))
        runtime.delete_namespace(uuid)


def replug(uuid: str, *ports: model.VIF) -> None:
    network_vif.plug_vifs(networks.instance(uuid), model.NetworkInfo(ports))


def left_of(ovs: Switch, port: model.VIF) -> list[Any]:
    return [
        found
        for found in (
            networks.host_device(port["devname"]),
            port["devname"] if port["devname"] in ovs.ports() else None,
        )
        if found
    ]


def test_same_network_is_reached_and_another_is_not(plug: Plug) -> None:
    first = plug(networks.simple_vif("10.7.0.5"), tag=1)
    plug(networks.simple_vif("10.7.0.6"), tag=1)
    plug(networks.simple_vif("10.7.0.7"), tag=2)
    assert networks.pings(first, "10.7.0.6")
    assert not networks.pings(first, "10.7.0.7")


def test_both_families_and_two_networks(plug: Plug) -> None:
    def ports(digit: int) -> tuple[model.VIF, model.VIF]:
        return (
            networks.simple_vif(f"10.7.0.{digit}"),
            networks.vif(networks.subnet("2001:db8::/64", [f"2001:db8::{digit}"])),
        )

    first = plug(*ports(5))
    plug(*ports(6))
    assert networks.pings(first, "10.7.0.6")
    assert networks.pings(first, "2001:db8::6")


def test_row_in_the_switch(ovs: Switch, plug: Plug) -> None:
    port = networks.simple_vif("10.7.0.5", mtu=1400)
    uuid = plug(port)
    assert ovs.ports() == [port["devname"]]
    found = ovs.interface(port["devname"], "external_ids")
    assert f'iface-id="{port["id"]}"' in found
    assert f'attached-mac="{port["address"]}"' in found
    assert f'vm-uuid="{uuid}"' in found
    assert "iface-status=active" in found
    assert networks.host_device(port["devname"])["mtu"] == 1400
    assert port["delegate_create"] is False  # The driver must not change Nova's model.


def may_have_tap(address: str, **details: Any) -> model.VIF:
    """Return a port as Neutron 29 describes it by default: os-vif may create a TAP device."""
    found = {"datapath_type": DATAPATH, "ovs_hybrid_plug": False, "ovs_create_tap": True}
    return networks.simple_vif(address, details={**found, **details})


def kind_of_device(port: model.VIF) -> str | None:
    device = networks.host_device(port["devname"])
    return device and device["linkinfo"]["info_kind"]


def restart_switch(ovs: Switch, uuid: str, port: model.VIF) -> None:
    ovs.restart_switching()


def lose_device(ovs: Switch, uuid: str, port: model.VIF) -> None:
    subprocess.run(["ip", "link", "delete", port["devname"]], check=True)


def lose_row(ovs: Switch, uuid: str, port: model.VIF) -> None:
    ovs.vsctl("del-port", port["devname"])


def lose_both(ovs: Switch, uuid: str, port: model.VIF) -> None:
    lose_row(ovs, uuid, port)
    lose_device(ovs, uuid, port)


def insert_anew(ovs: Switch, uuid: str, port: model.VIF) -> None:
    network_vif.replug_vifs(networks.instance(uuid), model.NetworkInfo([port]))


def insert_without_device(ovs: Switch, uuid: str, port: model.VIF) -> None:
    """Insert a port whose device another thread has just deleted."""
    lose_device(ovs, uuid, port)
    insert_anew(ovs, uuid, port)
    assert kind_of_device(port) is None


def unplug(ovs: Switch, uuid: str, port: model.VIF) -> None:
    network_vif.unplug_vifs(networks.instance(uuid), model.NetworkInfo([port]))
    assert left_of(ovs, port) == []


def lose_namespace(ovs: Switch, uuid: str, port: model.VIF) -> None:
    runtime.delete_namespace(uuid)


@pytest.mark.parametrize(
    "happens",
    [
        restart_switch,
        lose_device,
        lose_row,
        lose_both,
        insert_anew,
        insert_without_device,
        unplug,
        lose_namespace,
    ],
)
def test_port_for_which_os_vif_may_create_a_tap(
    ovs: Switch, plug: Plug, happens: Callable[[Switch, str, model.VIF], None]
) -> None:
    """A TAP device in the place of the veth device would have no end in the server."""
    port = may_have_tap("10.7.0.5")
    first = plug(port)
    plug(networks.simple_vif("10.7.0.6"))
    happens(ovs, first, port)
    replug(first, port)
    ovs.vsctl("set", "Port", port["devname"], "tag=1")
    assert kind_of_device(port) == "veth"
    assert networks.pings(first, "10.7.0.6")


def test_bridge_before_a_port_for_which_os_vif_may_create_a_tap(
    ovs: Switch, plug: Plug, new_instance_uuid: Callable[[], str]
) -> None:
    """os-vif refuses to create a TAP device behind a Linux bridge."""
    port, uuid = may_have_tap("10.7.0.5", ovs_hybrid_plug=True), new_instance_uuid()
    try:
        plug_hybrid(ovs, uuid, port)
        plug(networks.simple_vif("10.7.0.6"))
        assert networks.pings(uuid, "10.7.0.6")
    finally:
        network_vif.unplug_vifs(networks.instance(uuid), model.NetworkInfo([port]))
        runtime.delete_namespace(uuid)


@pytest.mark.skipif(DATAPATH != "system", reason="this kernel has no datapath of Open vSwitch")
def test_packets_are_the_kernels(ovs: Switch, plug: Plug) -> None:
    first = plug(networks.simple_vif("10.7.0.5"))
    plug(networks.simple_vif("10.7.0.6"))
    assert networks.pings(first, "10.7.0.6")
    assert networks.host_device("ovs-system")["linkinfo"]["info_kind"] == "openvswitch"
    shown = ovs.appctl("dpctl/show", "system@ovs-system")
    assert "lookups: hit:" in shown
    assert "lookups: hit:0 missed:0 " not in shown


def test_plugging_again_loses_no_packet(ovs: Switch, plug: Plug) -> None:
    port = networks.simple_vif("10.7.0.5")
    first = plug(port)
    plug(networks.simple_vif("10.7.0.6"))
    assert networks.pings(first, "10.7.0.6")
    row = ovs.interface(port["devname"], "_uuid")
    path = namespace.namespace_path(first)
    command = ["nsenter", f"--net={path}", "ping", "-q", "-i", "0.01", "-c", "200", "10.7.0.6"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ping:
        while ping.poll() is None:
            replug(first, port)
        assert ping.stdout is not None
        assert " 0% packet loss" in ping.stdout.read()
    assert ovs.interface(port["devname"], "_uuid") == row


def test_ports_are_wired_and_plugged_while_the_block_runs(
    ovs: Switch, new_instance_uuid: Callable[[], str]
) -> None:
    ports = [networks.simple_vif(f"10.7.0.{digit}") for digit in (5, 6, 7)]
    instance, info = networks.instance(new_instance_uuid()), model.NetworkInfo(ports)
    names = {port["devname"] for port in ports}
    try:
        with suppress(KeyError), network_vif.plugged_vifs(instance, info):
            raise KeyError
        # No request is pending any more, so the caller can revert its own.
        assert names <= set(ovs.ports())
    finally:
        network_vif.unplug_vifs(instance, info)
        runtime.delete_namespace(instance.uuid)
    assert names.isdisjoint(ovs.ports())


def test_ports_put_into_the_switch_anew(ovs: Switch, plug: Plug) -> None:
    first, second = networks.simple_vif("10.7.0.5"), networks.simple_vif("10.7.0.6")
    uuid, other = plug(first), plug(second)

    def row() -> str:
        return ovs.vsctl("get", "Interface", first["devname"], "_uuid")

    before, index = row(), networks.host_device(first["devname"])["ifindex"]
    network_vif.replug_vifs(networks.instance(uuid), model.NetworkInfo([first]))
    assert row() != before
    assert networks.host_device(first["devname"])["ifindex"] == index
    ovs.vsctl("set", "Port", first["devname"], "tag=1")
    assert networks.pings(uuid, "10.7.0.6")
    assert networks.pings(other, "10.7.0.5")


def test_silenced_until_plugged_again(plug: Plug) -> None:
    port = networks.simple_vif("10.7.0.5")
    first = plug(port)
    second = plug(networks.simple_vif("10.7.0.6"))
    assert networks.pings(second, "10.7.0.5")
    for _ in range(2):
        network_vif.silence_vifs(networks.instance(first), model.NetworkInfo([port]))
    assert not networks.pings(second, "10.7.0.5")
    replug(first, port)
    assert networks.pings(second, "10.7.0.5")


def test_silencing_what_is_absent(new_instance_uuid: Callable[[], str]) -> None:
    absent = networks.simple_vif("10.7.0.5")
    network_vif.silence_vifs(networks.instance(new_instance_uuid()), model.NetworkInfo([absent]))


def test_device_deleted_behind_the_switch(ovs: Switch, plug: Plug) -> None:
    port = networks.simple_vif("10.7.0.5")
    first = plug(port)
    plug(networks.simple_vif("10.7.0.6"))
    subprocess.run(["ip", "link", "delete", port["devname"]], check=True)
    replug(first, port)
    ovs.vsctl("set", "Port", port["devname"], "tag=1")
    assert networks.pings(first, "10.7.0.6")


def test_device_of_a_namespace_that_lost_its_name(ovs: Switch, plug: Plug) -> None:
    port = networks.simple_vif("10.7.0.5")
    first = plug(port)
    plug(networks.simple_vif("10.7.0.6"))
    path = namespace.namespace_path(first)
    command = ["nsenter", f"--net={path}", "sh", "-c", "echo entered; exec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        runtime.delete_namespace(first)
        assert networks.host_device(port["devname"]) is not None
        replug(first, port)
        ovs.vsctl("set", "Port", port["devname"], "tag=1")
        assert networks.pings(first, "10.7.0.6")
        holder.terminate()


def test_row_left_by_a_host_that_went_down(ovs: Switch, plug: Plug) -> None:
    port = networks.simple_vif("10.7.0.5")
    name = port["devname"]
    ids = "external_ids:iface-id=another"
    ovs.vsctl("--no-wait", "add-port", BRIDGE, name, "--", "set", "Interface", name, ids)
    first = plug(port)
    plug(networks.simple_vif("10.7.0.6"))
    assert networks.pings(first, "10.7.0.6")
    assert f'iface-id="{port["id"]}"' in ovs.interface(name, "external_ids")


def test_unplug_leaves_nothing_and_can_be_repeated(
    ovs: Switch, new_instance_uuid: Callable[[], str]
) -> None:
    instance = networks.instance(new_instance_uuid())
    ports = model.NetworkInfo([networks.simple_vif("10.7.0.5"), networks.simple_vif("10.7.0.6")])
    network_vif.plug_vifs(instance, ports)
    for _ in range(2):
        network_vif.unplug_vifs(instance, ports)
        runtime.delete_namespace(instance.uuid)
    assert [left_of(ovs, port) for port in ports] == [[], []]
    assert not namespaces.is_namespace(namespace.namespace_path(instance.uuid))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"type": "binding_failed"}, "binding_failed"),
        ({"type": "bridge"}, "its bridge is 'br-int'"),
        ({"type": "tap"}, "mechanism driver novadocker did not bind it"),
        (
            {"type": "tap", "details": {"bridge_name": "brq1", "physical_network": "absent"}},
            "no interface for the physical network 'absent'",
        ),
        ({"type": "vhostuser"}, "vif_type is 'vhostuser'"),
        ({"type": None}, "vif_type is None"),
        ({"vnic_type": "direct"}, "vnic_type is 'direct'"),
        ({"vnic_type": "macvtap"}, "vnic_type is 'macvtap'"),
    ],
)
def test_unsupported_port_is_refused_before_anything_is_done(
    ovs: Switch, instance_uuid: str, fields: dict[str, Any], reason: str
) -> None:
    good, bad = networks.simple_vif("10.7.0.5"), networks.simple_vif("10.7.0.6", **fields)
    instance, ports = networks.instance(instance_uuid), model.NetworkInfo([good, bad])
    with pytest.raises(exception.PlugFailed, match=reason) as caught:
        network_vif.plug_vifs(instance, ports)
    assert bad["id"] in str(caught.value)
    assert [left_of(ovs, port) for port in ports] == [[], []]
    assert not namespaces.is_namespace(namespace.namespace_path(instance_uuid))
    network_vif.unplug_vifs(instance, ports)


def test_device_name_in_use_by_the_host(ovs: Switch, instance_uuid: str) -> None:
    port = networks.simple_vif("10.7.0.5")
    instance, ports = networks.instance(instance_uuid), model.NetworkInfo([port])
    subprocess.run(["ip", "tuntap", "add", port["devname"], "mode", "tap"], check=True)
    subprocess.run(["ip", "link", "set", port["devname"], "up"], check=True)
    try:
        with pytest.raises(exception.PlugFailed, match="not a veth"):
            network_vif.plug_vifs(instance, ports)
    finally:
        subprocess.run(["ip", "link", "delete", port["devname"]], check=True)
        runtime.delete_namespace(instance_uuid)
    assert port["devname"] not in ovs.ports()


@contextmanager
def impatience() -> Iterator[None]:
    """Make os-vif, which is connected, wait one second per answer and reconnect without a pause."""
    timeout, pauses = connection().timeout, connection().idl._session.reconnect
    connection().timeout = 1
    CONF.set_override("ovs_vsctl_timeout", 1, group="os_vif_ovs")
    # In milliseconds, see ovs/reconnect.py.
    pauses.set_backoff(50, 50)
    try:
        yield
    finally:
        connection().timeout = timeout
        CONF.set_override("ovs_vsctl_timeout", timeout, group="os_vif_ovs")
        pauses.set_backoff(1000, 8000)


def connection() -> Any:
    return os_vif._EXT_MANAGER["ovs"].obj.ovsdb.ovsdb.ovsdb_connection


def test_switch_that_does_not_answer(ovs: Switch, instance_uuid: str) -> None:
    instance = networks.instance(instance_uuid)
    ports = model.NetworkInfo([networks.simple_vif("10.7.0.5"), networks.simple_vif("10.7.0.6")])
    with impatience(), ovs.hanging():
        started = time.monotonic()
        with pytest.raises(exception.PlugFailed) as caught:
            network_vif.plug_vifs(instance, ports)
        # On its own datapath, os-vif only logs a failed deletion.
        with suppress(exception.PlugFailed):
            network_vif.unplug_vifs(instance, ports)
        runtime.delete_namespace(instance_uuid)
        # The timeout applies to each request.
        assert time.monotonic() - started < 30
    assert ports[0]["id"] in str(caught.value)
    assert "no answer within 1 s" in str(caught.value)
    assert [networks.host_device(port["devname"]) for port in ports] == [None, None]
    # The restarted switch may run a request that the client gave up.
    network_vif.unplug_vifs(instance, ports)
    assert [left_of(ovs, port) for port in ports] == [[], []]


def test_switch_that_went_down(ovs: Switch, plug: Plug, instance_uuid: str) -> None:
    """os-vif had a connection and keeps trying to restore it."""
    instance = networks.instance(instance_uuid)
    port = networks.simple_vif("10.7.0.5")
    ports = model.NetworkInfo([port])
    plug(networks.simple_vif("10.7.0.6"))
    with impatience(), ovs.down(killed=True), pytest.raises(exception.PlugFailed) as caught:
        network_vif.plug_vifs(instance, ports)
    assert port["id"] in str(caught.value)
    assert "Connection refused" in str(caught.value)
    network_vif.plug_vifs(instance, ports)
    ovs.vsctl("set", "Port", port["devname"], "tag=1")
    assert networks.pings(instance_uuid, "10.7.0.6")
    with impatience(), ovs.down(killed=False), suppress(exception.PlugFailed):
        network_vif.unplug_vifs(instance, ports)
    assert networks.host_device(port["devname"]) is None
    network_vif.plug_vifs(instance, ports)
    ovs.vsctl("set", "Port", port["devname"], "tag=1")
    assert networks.pings(instance_uuid, "10.7.0.6")
    network_vif.unplug_vifs(instance, ports)
    runtime.delete_namespace(instance_uuid)
    assert left_of(ovs, port) == []


@pytest.mark.parametrize("connection", ["tcp:127.0.0.1:1", "unix:/nonexistent/db.sock"])
def test_switch_that_was_never_reached(ovs: Switch, instance_uuid: str, connection: str) -> None:
    instance = networks.instance(instance_uuid)
    port = networks.simple_vif("10.7.0.5")
    ports = model.NetworkInfo([port])
    try:
        for call in (network_vif.plug_vifs, network_vif.replug_vifs):
            CONF.set_override("ovsdb_connection", connection, group="os_vif_ovs")
            with pytest.raises(exception.PlugFailed) as caught:
                call(instance, ports)
            assert port["id"] in str(caught.value)
            assert f"Open vSwitch cannot be asked at {connection}: " in str(caught.value)
            CONF.set_override("ovsdb_connection", ovs.connection, group="os_vif_ovs")
            network_vif.plug_vifs(instance, ports)
            assert port["devname"] in ovs.ports()
    finally:
        CONF.set_override("ovsdb_connection", ovs.connection, group="os_vif_ovs")
    network_vif.unplug_vifs(instance, ports)
    runtime.delete_namespace(instance_uuid)
    assert left_of(ovs, port) == []


def test_switch_restarted(ovs: Switch, plug: Plug) -> None:
    port = networks.simple_vif("10.7.0.5")
    first = plug(port)
    plug(networks.simple_vif("10.7.0.6"))
    ovs.stop_switching()
    ovs.start_switching()
    replug(first, port)
    assert networks.pings(first, "10.7.0.6")


# The ethertype is for experiments; a VLAN tag may precede it.
_SEND = """
import socket
frame = bytes.fromhex("ffffffffffff{mac}" + "{tag}" + "88b5") + b"hello".ljust(60)
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
    link.bind(("eth0", 0))
    link.send(frame)
"""
_RECEIVE = """
import socket
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88b5)) as link:
    link.bind(("eth0", 0x88b5))
    print("listens", flush=True)
    # The socket keeps frames that arrive before the peer has sent its frame.
    input()
    link.settimeout(3)
    try:
        print(link.recv(100)[14:19].decode())
    except TimeoutError:
        print("nothing")
"""


def heard(listener: str, speaker: str, port: model.VIF, tag: str) -> str:
    """Return the text that an instance receives when another sends a frame, optionally tagged."""
    path = namespace.namespace_path(listener)
    command = ["nsenter", f"--net={path}", sys.executable, "-c", _RECEIVE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "listens\n"
        script = _SEND.format(mac=port["address"].replace(":", ""), tag=tag)
        sent = networks.run(speaker, sys.executable, "-c", script)
        assert sent.returncode == 0, sent.stderr
        process.stdin.write("sent\n")
        process.stdin.close()
        return process.stdout.readline().strip()


def test_trunk_bridge(ovs: Switch, plug: Plug, new_instance_uuid: Callable[[], str]) -> None:
    """The parent port has no tag; a subport's network is a VLAN on the same device."""
    parent = networks.simple_vif(
        "10.7.0.5", details={"datapath_type": DATAPATH, "bridge_name": "tbr-01234567-8"}
    )
    # Nova takes the bridge from the port's details.
    parent["network"]["bridge"] = "tbr-01234567-8"
    first = new_instance_uuid()
    instance, ports = networks.instance(first), model.NetworkInfo([parent])
    network_vif.plug_vifs(instance, ports)
    # Neutron's agent creates these ports for a trunk with one subport.
    for inner, outer, tag, network in (("tpt", "tpi", "", "1"), ("spt", "spi", "100", "2")):
        ovs.vsctl(
            *("add-port", "tbr-01234567-8", inner, *([f"tag={tag}"] if tag else [])),
            *("--", "set", "Interface", inner, "type=patch", f"options:peer={outer}"),
            *("--", "add-port", BRIDGE, outer, f"tag={network}"),
            *("--", "set", "Interface", outer, "type=patch", f"options:peer={inner}"),
        )
    same = plug(networks.simple_vif("10.7.0.6"), tag=1)
    other = plug(networks.simple_vif("10.7.0.7"), tag=2)
    try:
        network_vif.plug_vifs(instance, ports)
        assert networks.pings(first, "10.7.0.6")
        assert not networks.pings(first, "10.7.0.7")
        assert heard(other, first, parent, tag="81000064") == "hello"
        assert heard(other, first, parent, tag="") == "nothing"
        assert heard(same, first, parent, tag="") == "hello"
    finally:
        for outer in ("tpi", "spi"):
            ovs.vsctl("del-port", outer)
        for _ in range(2):
            network_vif.unplug_vifs(instance, ports)
        runtime.delete_namespace(first)
    assert ovs.vsctl("list-br") == BRIDGE
    assert networks.host_device(parent["devname"]) is None


def hybrid(address: str) -> model.VIF:
    """Return a port as Neutron's agent with the firewall driver iptables_hybrid has it."""
    return networks.simple_vif(
        address, details={"datapath_type": DATAPATH, "ovs_hybrid_plug": True}
    )


def hybrid_devices(port: model.VIF) -> dict[str, Any]:
    return {
        prefix: networks.host_device(f"{prefix}{port['id']}"[: model.NIC_NAME_LEN])
        for prefix in ("tap", "qbr", "qvb", "qvo")
    }


def plug_hybrid(ovs: Switch, uuid: str, port: model.VIF) -> None:
    network_vif.plug_vifs(networks.instance(uuid), model.NetworkInfo([port]))
    ovs.vsctl("set", "Port", f"qvo{port['id']}"[: model.NIC_NAME_LEN], "tag=1")


@pytest.mark.parametrize("lost", [None, "tap", "qbr", "qvo"])
def test_bridge_for_iptables_between_port_and_switch(
    ovs: Switch, new_instance_uuid: Callable[[], str], lost: str | None
) -> None:
    servers = [(new_instance_uuid(), hybrid(f"10.7.0.{digit}")) for digit in (5, 6)]
    for server in servers:
        plug_hybrid(ovs, *server)
    first, port = servers[0]
    if lost:
        device = hybrid_devices(port)[lost]["ifname"]
        subprocess.run(["ip", "link", "delete", device], check=True)
        plug_hybrid(ovs, first, port)
    assert networks.pings(first, "10.7.0.6")
    found = hybrid_devices(port)
    assert found["tap"]["master"] == found["qvb"]["master"] == found["qbr"]["ifname"]
    assert f'iface-id="{port["id"]}"' in ovs.interface(found["qvo"]["ifname"], "external_ids")
    for uuid, unplugged in servers:
        network_vif.unplug_vifs(networks.instance(uuid), model.NetworkInfo([unplugged]))
        runtime.delete_namespace(uuid)
        assert set(hybrid_devices(unplugged).values()) == {None}


@pytest.mark.parametrize("is_hybrid", [False, True])
@pytest.mark.parametrize("has_devices", [False, True])
def test_ports_that_nova_has_forgotten(
    ovs: Switch, new_instance_uuid: Callable[[], str], is_hybrid: bool, has_devices: bool
) -> None:
    make = hybrid if is_hybrid else networks.simple_vif
    servers = [(new_instance_uuid(), make(f"10.7.0.{digit}")) for digit in (5, 6)]
    for uuid, port in servers:
        network_vif.plug_vifs(networks.instance(uuid), model.NetworkInfo([port]))
    (gone, left), (stays, other) = servers
    ovs.vsctl("add-port", BRIDGE, "strange", "--", "set", "Interface", "strange", "type=internal")
    ovs.vsctl("set", "Interface", "strange", f"external_ids:vm-uuid={gone}")
    try:
        if not has_devices:
            # The kernel deletes the devices with the namespace.
            runtime.delete_namespace(gone)
        found = network_vif.find_vifs(gone)
        assert [vif["id"] for vif in found] == [left["id"]]
        network_vif.unplug_vifs(networks.instance(gone), found)
        assert set(hybrid_devices(left).values()) == {None}
        assert [name for name in ovs.ports() if name[3:] in left["id"]] == []
        assert [vif["id"] for vif in network_vif.find_vifs(stays)] == [other["id"]]
    finally:
        ovs.vsctl("del-port", "strange")
        for uuid, port in servers:
            network_vif.unplug_vifs(networks.instance(uuid), model.NetworkInfo([port]))
            runtime.delete_namespace(uuid)


def test_switch_that_does_not_answer_has_no_ports(
    ovs: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CONF.os_vif_ovs, "ovsdb_connection", "unix:/nowhere")
    assert list(network_vif.find_vifs("server")) == []


@pytest.mark.parametrize("was_hybrid", [False, True])
def test_port_that_moved_to_a_host_with_the_other_firewall(
    ovs: Switch, instance_uuid: str, was_hybrid: bool
) -> None:
    """Neutron describes the port as the new host's agent has it."""
    here = hybrid("10.7.0.5")
    there = copy.deepcopy(here)
    (there if was_hybrid else here)["details"]["ovs_hybrid_plug"] = False
    instance = networks.instance(instance_uuid)
    network_vif.plug_vifs(instance, model.NetworkInfo([here]))
    assert ovs.ports() == [f"{'qvo' if was_hybrid else 'tap'}{here['id']}"[: model.NIC_NAME_LEN]]
    network_vif.unplug_vifs(instance, model.NetworkInfo([there]))
    runtime.delete_namespace(instance_uuid)
    assert ovs.ports() == []
    assert set(hybrid_devices(here).values()) == {None}


def test_other_ports_are_unplugged_when_one_fails(
    ovs: Switch, instance_uuid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = networks.instance(instance_uuid)
    ports = model.NetworkInfo([networks.simple_vif("10.7.0.5"), networks.simple_vif("10.7.0.6")])
    network_vif.plug_vifs(instance, ports)
    unplug = os_vif.unplug

    def refuse_first(vif: Any, info: Any) -> None:
        if vif.id == ports[0]["id"]:
            raise os_vif.exception.UnplugException(vif=vif, err="refused")
        unplug(vif, info)

    with monkeypatch.context() as patched:
        patched.setattr(os_vif, "unplug", refuse_first)
        with pytest.raises(exception.PlugFailed, match="refused") as caught:
            network_vif.unplug_vifs(instance, ports)
    assert ports[0]["id"] in str(caught.value)
    assert [left_of(ovs, port) for port in ports] == [[ports[0]["devname"]], []]
    network_vif.unplug_vifs(instance, ports)
    runtime.delete_namespace(instance_uuid)
    assert left_of(ovs, ports[0]) == []
