# SPDX-License-Identifier: Apache-2.0
"""Ports that are attached, detached and changed on a running server; many ports at once."""

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from nova import objects
from nova.network import model

from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from novadocker.virt.docker.network import device_names, vif
from tests.engine import networks
from tests.engine.switch import Switch


@pytest.fixture
def instance(ovs: Switch, instance_uuid: str) -> Iterator[objects.Instance]:
    found = networks.instance(instance_uuid)
    yield found
    runtime.delete_namespace(instance_uuid)


@pytest.fixture
def plug(ovs: Switch, instance: objects.Instance) -> Iterator[Callable[..., None]]:
    """Yield a function that sets the instance's ports as the driver does; unplug them all."""
    present = model.NetworkInfo()

    def call(*ports: model.VIF) -> None:
        nonlocal present
        kept = [port["id"] for port in ports]
        gone = model.NetworkInfo(port for port in present if port["id"] not in kept)
        present = model.NetworkInfo(ports)
        vif.unplug_vifs(instance, gone)
        device_names.record_names(instance, present)
        vif.plug_vifs(instance, present)

    yield call
    vif.unplug_vifs(instance, present)
    assert ovs.ports() == []


def devices(instance: objects.Instance) -> dict[str, Any]:
    """Return the devices except for the loopback device, by MAC address."""
    links = networks.ip(instance.uuid, "link")
    return {link["address"]: link for link in links if link["link_type"] == "ether"}


def name_of(instance: objects.Instance, port: model.VIF) -> str:
    return str(devices(instance)[port["address"]]["ifname"])


def addresses(instance: objects.Instance, device: str) -> list[str]:
    """Return a device's addresses, without the kernel's own link-local address."""
    (link,) = networks.ip(instance.uuid, "address", "show", "dev", device)
    found = [f"{entry['local']}/{entry['prefixlen']}" for entry in link["addr_info"]]
    return [address for address in found if not address.startswith("fe80:")]


def defaults(instance: objects.Instance) -> list[tuple[str, str]]:
    routes = networks.ip(instance.uuid, "route") + networks.ip(instance.uuid, "-6", "route")
    return [(r["gateway"], r["dev"]) for r in routes if r["dst"] == "default"]


def test_fifty_times_and_the_other_port_loses_no_packet(
    ovs: Switch, instance: objects.Instance, plug: Callable[..., None]
) -> None:
    steady = networks.simple_vif("10.7.0.5")
    plug(steady)
    before, rows = devices(instance)[steady["address"]], ovs.ports()
    # The switch's internal port answers the pings.
    subprocess.run(["ip", "address", "add", "10.7.0.1/24", "dev", "br-int"], check=True)
    subprocess.run(["ip", "link", "set", "br-int", "up"], check=True)
    command = [
        "nsenter",
        f"--net={namespace.namespace_path(instance.uuid)}",
        "ping",
        "-q",
        "-i",
        "0.1",
    ]
    with subprocess.Popen([*command, "10.7.0.1"], stdout=subprocess.PIPE, text=True) as ping:
        for _ in range(50):
            guest = networks.vif(networks.subnet("10.8.0.0/24", ["10.8.0.5"], "10.8.0.1"))
            plug(steady, guest)
            assert name_of(instance, guest) == "eth1"
            plug(steady)
        ping.send_signal(signal.SIGINT)
        assert ping.stdout is not None
        sent, received = re.findall(r"(\d+) (?:packets transmitted|received)", ping.stdout.read())
    # The last packet may be in flight.
    assert int(sent) - int(received) <= 1
    subprocess.run(["ip", "address", "flush", "dev", "br-int"], check=True)
    assert devices(instance) == {steady["address"]: before}
    assert ovs.ports() == rows


def test_names_stay_when_the_first_of_three_goes(
    instance: objects.Instance, plug: Callable[..., None]
) -> None:
    first, second, third = (
        networks.vif(networks.subnet(f"10.{n}.0.0/24", [f"10.{n}.0.5"], f"10.{n}.0.1"))
        for n in (7, 8, 9)
    )
    plug(first, second, third)
    assert defaults(instance) == [("10.7.0.1", "eth0")]
    plug(second, third)
    assert [name_of(instance, port) for port in (second, third)] == ["eth1", "eth2"]
    assert defaults(instance) == [("10.8.0.1", "eth1")]
    new = networks.simple_vif("10.7.0.6")
    plug(second, third, new)
    expected = {second["address"]: "eth1", third["address"]: "eth2", new["address"]: "eth0"}
    assert {mac: link["ifname"] for mac, link in devices(instance).items()} == expected
    # This is the state after a reboot of the host, or on another host.
    vif.unplug_vifs(instance, model.NetworkInfo([second, third, new]))
    runtime.delete_namespace(instance.uuid)
    plug(second, third, new)
    assert {mac: link["ifname"] for mac, link in devices(instance).items()} == expected
    assert defaults(instance) == [("10.8.0.1", "eth1")]


def test_fixed_addresses_come_and_go(instance: objects.Instance, plug: Callable[..., None]) -> None:
    port = networks.simple_vif("10.7.0.5")
    plug(port)
    index = devices(instance)[port["address"]]["ifindex"]
    (subnet,) = port["network"]["subnets"]
    subnet["ips"].append(model.FixedIP(address="10.7.0.9"))
    port["network"]["subnets"].append(networks.subnet("fd00::/64", ["fd00::9"]))
    plug(port)
    assert addresses(instance, "eth0") == ["10.7.0.5/24", "10.7.0.9/24", "fd00::9/64"]
    # On many kernels, the deletion of the first address deletes the second too.
    del subnet["ips"][0]
    del port["network"]["subnets"][1]
    plug(port)
    assert addresses(instance, "eth0") == ["10.7.0.9/24"]
    assert defaults(instance) == [("10.7.0.1", "eth0")]
    assert devices(instance)[port["address"]]["ifindex"] == index


def test_eight_ports_of_all_kinds(instance: objects.Instance, plug: Callable[..., None]) -> None:
    ports = [
        networks.vif(networks.subnet("10.20.0.0/24", ["10.20.0.5"]), mtu=1400),
        networks.vif(networks.subnet("10.21.0.0/24", ["10.21.0.5", "10.21.0.6"], "10.21.0.1")),
        networks.vif(networks.subnet("fd00:22::/64", ["fd00:22::5"], "fe80::1"), mtu=9000),
        networks.vif(
            networks.subnet("10.23.0.0/24", ["10.23.0.5"], "10.23.0.1"),
            networks.subnet("fd00:23::/64", ["fd00:23::5"], "fd00:23::1"),
        ),
        networks.vif(),
        networks.vif(
            networks.subnet("10.25.0.0/24", ["10.25.0.5"], None, [("10.99.0.0/16", "10.25.0.254")]),
            mtu=None,
        ),
        networks.vif(
            networks.subnet("10.26.0.0/24", ["10.26.0.5"]),
            networks.subnet("10.27.0.0/24", ["10.27.0.5"]),
        ),
        # This port is on the second port's network.
        networks.vif(networks.subnet("10.21.0.0/24", ["10.21.0.9"], "10.21.0.1")),
    ]
    plug(*ports)
    assert [name_of(instance, port) for port in ports] == [f"eth{n}" for n in range(8)]
    assert [addresses(instance, f"eth{n}") for n in range(8)] == [
        ["10.20.0.5/24"],
        ["10.21.0.5/24", "10.21.0.6/24"],
        ["fd00:22::5/64"],
        ["10.23.0.5/24", "fd00:23::5/64"],
        [],
        ["10.25.0.5/24"],
        ["10.26.0.5/24", "10.27.0.5/24"],
        ["10.21.0.9/24"],
    ]
    assert defaults(instance) == [("10.21.0.1", "eth1"), ("fe80::1", "eth2")]
    found = [devices(instance)[port["address"]] for port in ports]
    assert [link["mtu"] for link in found] == [1400, 1450, 9000, 1450, 1450, 1500, 1450, 1450]
    assert all("UP" in link["flags"] for link in found)
    (extra,) = networks.ip(instance.uuid, "route", "show", "10.99.0.0/16")
    assert (extra["gateway"], extra["dev"]) == ("10.25.0.254", "eth5")


@pytest.mark.parametrize("count", range(1, 8))
def test_order_of_fewer_ports(
    instance: objects.Instance, plug: Callable[..., None], count: int
) -> None:
    ports = [
        networks.vif(networks.subnet(f"10.{n}.0.0/24", [f"10.{n}.0.5"], f"10.{n}.0.1"))
        for n in range(20, 20 + count)
    ]
    plug(*ports)
    assert [name_of(instance, port) for port in ports] == [f"eth{n}" for n in range(count)]
    assert defaults(instance) == [("10.20.0.1", "eth0")]
