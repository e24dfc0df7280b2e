# SPDX-License-Identifier: Apache-2.0
"""Conversion of Nova's network model into devices, addresses and routes."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest
from nova.network import model

from novadocker.privsep.network import namespace
from novadocker.privsep.network.types import Route
from novadocker.virt.docker.network.nic import (
    device_names,
    dns_from_network_info,
    nics_from_network_info,
)

PORTS = [f"0e6e0b4b-7a41-4f0b-9f1a-0f64e1f5a1c{digit}" for digit in range(3)]


def subnet(
    cidr: str,
    ips: Sequence[str],
    gateway: str | None = None,
    routes: Sequence[tuple[str, str]] = (),
    dns: Sequence[str] = (),
    **meta: Any,
) -> model.Subnet:
    return model.Subnet(
        cidr=cidr,
        # Neutron's client builds a missing gateway in this form: its address is None.
        gateway=model.IP(address=gateway, type="gateway"),
        ips=[model.FixedIP(address=ip) for ip in ips],
        routes=[
            model.Route(cidr=cidr, gateway=model.IP(address=hop, type="gateway"))
            for cidr, hop in routes
        ],
        dns=[model.IP(address=server, type="dns") for server in dns],
        **meta,
    )


def network_info(*vifs: Sequence[model.Subnet], **meta: Any) -> model.NetworkInfo:
    return model.NetworkInfo(
        model.VIF(
            id=port,
            address="FA:16:3E:00:00:05",
            network=model.Network(id="network", bridge="br-int", subnets=list(subnets), **meta),
            type="ovs",
            devname=f"tap{port}"[:14],
        )
        for port, subnets in zip(PORTS, vifs, strict=False)
    )


V4 = subnet("10.0.0.0/24", ["10.0.0.5"], "10.0.0.1")
V6 = subnet("2001:db8::/64", ["2001:db8::5"], "2001:db8::1")
DEFAULT_4 = Route("0.0.0.0/0", "10.0.0.1")
DEFAULT_6 = Route("::/0", "2001:db8::1")


def test_devices_in_order_of_neutron() -> None:
    first, second = nics_from_network_info(network_info([V4], [V6], mtu=1450))
    assert (first.guest_device, second.guest_device) == ("eth0", "eth1")
    assert (first.port_id, second.port_id) == (PORTS[0], PORTS[1])
    assert first.host_device == "tap0e6e0b4b-7a"
    assert first.mac == "fa:16:3e:00:00:05"
    assert first.mtu == 1450


@pytest.mark.parametrize(
    ("recorded", "names"),
    [
        ({}, ["eth0", "eth1", "eth2"]),
        # The first of three ports was detached, then another port was attached.
        ({PORTS[0]: "eth1", PORTS[1]: "eth2"}, ["eth1", "eth2", "eth0"]),
        # The second port lost its record.
        ({PORTS[0]: "eth0", PORTS[2]: "eth1"}, ["eth0", "eth2", "eth1"]),
        ({PORTS[0]: "eth1", PORTS[1]: "eth1"}, ["eth1", "eth0", "eth2"]),
        ({"port of the past": "eth0"}, ["eth0", "eth1", "eth2"]),
    ],
)
def test_device_names(recorded: dict[str, str], names: list[str]) -> None:
    ports = network_info([V4], [V6], [])
    assert list(device_names(ports, recorded).values()) == names
    assert [nic.guest_device for nic in nics_from_network_info(ports, recorded)] == names


@pytest.mark.parametrize(
    ("subnets", "addresses", "routes"),
    [
        pytest.param([], (), (), id="no address"),
        pytest.param([subnet("10.0.0.0/24", [], "10.0.0.1")], (), (), id="subnet of another port"),
        pytest.param([V4], ("10.0.0.5/24",), (DEFAULT_4,), id="one address"),
        pytest.param([subnet("10.0.0.0/24", ["10.0.0.5"])], ("10.0.0.5/24",), (), id="no gateway"),
        pytest.param(
            [subnet("10.0.0.0/24", ["10.0.0.5", "10.0.0.6"], "10.0.0.1")],
            ("10.0.0.5/24", "10.0.0.6/24"),
            (DEFAULT_4,),
            id="two addresses of a subnet",
        ),
        pytest.param(
            [V4, V6], ("10.0.0.5/24", "2001:db8::5/64"), (DEFAULT_4, DEFAULT_6), id="both families"
        ),
        pytest.param(
            [V4, subnet("10.1.0.0/16", ["10.1.0.5"], "10.1.0.1")],
            ("10.0.0.5/24", "10.1.0.5/16"),
            (DEFAULT_4,),
            id="two subnets with a gateway each",
        ),
        pytest.param(
            [subnet("2001:db8::/64", ["2001:db8::5"], "fe80::1")],
            ("2001:db8::5/64",),
            (Route("::/0", "fe80::1"),),
            id="IPv6 gateway is link-local",
        ),
        pytest.param(
            [subnet("10.0.0.5/32", ["10.0.0.5"], "192.0.2.1")],
            ("10.0.0.5/32",),
            (Route("0.0.0.0/0", "192.0.2.1"),),
            id="gateway outside the subnet",
        ),
        pytest.param(
            [
                subnet(
                    "10.0.0.0/24",
                    ["10.0.0.5"],
                    "10.0.0.1",
                    [("192.168.1.7/16", "10.0.0.9"), ("172.16.0.0/12", "0.0.0.0")],
                )
            ],
            ("10.0.0.5/24",),
            (DEFAULT_4, Route("192.168.0.0/16", "10.0.0.9"), Route("172.16.0.0/12", None)),
            id="host routes, one of them on the link",
        ),
        pytest.param(
            [subnet("10.0.0.0/24", ["10.0.0.5"], "10.0.0.1", [("0.0.0.0/0", "10.0.0.9")])],
            ("10.0.0.5/24",),
            (DEFAULT_4,),
            id="a gateway goes before a default host route",
        ),
        pytest.param(
            [subnet("10.0.0.0/24", ["10.0.0.5"], None, [("0.0.0.0/0", "10.0.0.9")])],
            ("10.0.0.5/24",),
            (Route("0.0.0.0/0", "10.0.0.9"),),
            id="default route among the host routes",
        ),
        pytest.param(
            [
                subnet("10.0.0.0/24", ["10.0.0.5"], None, [("10.1.0.0/16", "10.0.0.9")]),
                subnet("10.1.0.0/16", ["10.1.0.5"]),
            ],
            ("10.0.0.5/24", "10.1.0.5/16"),
            (),
            id="a host route to a subnet the port is in",
        ),
    ],
)
def test_addresses_and_routes(
    subnets: list[model.Subnet], addresses: tuple[str, ...], routes: tuple[Route, ...]
) -> None:
    (nic,) = nics_from_network_info(network_info(subnets))
    assert nic.addresses == addresses
    assert nic.routes == routes


def test_one_default_route_in_each_family_over_all_devices() -> None:
    bare = subnet("10.9.0.0/24", ["10.9.0.5"])
    other = subnet("10.8.0.0/24", ["10.8.0.5"], "10.8.0.1")
    found = nics_from_network_info(network_info([bare], [V4], [other, V6]))
    assert [nic.routes for nic in found] == [(), (DEFAULT_4,), (DEFAULT_6,)]


def test_same_host_route_on_two_devices_is_kept_once() -> None:
    one = subnet("10.0.0.0/24", ["10.0.0.5"], None, [("10.9.0.0/16", "10.0.0.9")])
    two = subnet("10.1.0.0/24", ["10.1.0.5"], None, [("10.9.0.0/16", "10.1.0.9")])
    found = nics_from_network_info(network_info([one], [two]))
    assert [nic.routes for nic in found] == [(Route("10.9.0.0/16", "10.0.0.9"),), ()]


def test_two_ports_on_one_subnet() -> None:
    other = subnet("10.0.0.0/24", ["10.0.0.6"], "10.0.0.1")
    first, second = nics_from_network_info(network_info([V4], [other]))
    assert first.routes == (DEFAULT_4,)
    assert second.addresses == ("10.0.0.6/24",)
    assert second.routes == ()


def test_mtu_missing() -> None:
    (nic,) = nics_from_network_info(network_info([V4]))
    assert nic.mtu is None


def test_port_without_device_name_gets_that_of_os_vif() -> None:
    ports = network_info([V4])
    ports[0]["devname"] = None
    (nic,) = nics_from_network_info(ports)
    assert nic.host_device == "nic0e6e0b4b-7a"


def test_no_port() -> None:
    assert nics_from_network_info(model.NetworkInfo()) == ()


@pytest.mark.parametrize(
    ("subnets", "servers"),
    [
        ([[V4]], ()),
        ([[subnet("10.0.0.0/24", ["10.0.0.5"], dns=["10.0.0.3", "10.0.0.2"])]] * 2,
         ("10.0.0.3", "10.0.0.2")),
        ([[subnet("10.0.0.0/24", ["10.0.0.5"], dhcp_server="10.0.0.2", enable_dhcp=True)]],
         ("10.0.0.2",)),
        ([[subnet("10.0.0.0/24", ["10.0.0.5"], dhcp_server="10.0.0.2", enable_dhcp=False)]], ()),
        ([[subnet("10.0.0.0/24", ["10.0.0.5"], dns=["10.0.0.3"], dhcp_server="10.0.0.2",
                  enable_dhcp=True)]], ("10.0.0.3",)),
        ([[subnet("10.0.0.0/24", [], dns=["10.0.0.3"])]], ()),
    ],
)  # fmt: skip
def test_name_servers(subnets: list[list[model.Subnet]], servers: tuple[str, ...]) -> None:
    assert dns_from_network_info(network_info(*subnets)) == servers


NIC = asdict(nics_from_network_info(network_info([V4, V6], mtu=1450))[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"port_id": "port"},
        {"host_device": "eth0"},
        {"host_device": "tap/../x"},
        {"host_device": "tap0e6e0b4b-7a41"},
        {"host_device": ""},
        {"guest_device": "lo"},
        {"guest_device": "eth0\n"},
        {"mac": "fa:16:3e:00:00"},
        {"mac": b"\xfa\x16"},
        {"mtu": 67},
        {"mtu": 65536},
        {"mtu": "1450"},
        {"mtu": True},
        {"addresses": ["10.0.0.256/24"]},
        {"addresses": ["10.0.0.5/33"]},
        {"routes": [{"destination": "10.0.0.1/24", "gateway": None}]},
        {"routes": [{"destination": "default", "gateway": None}]},
        {"routes": [{"destination": "10.0.0.0/24", "gateway": "router"}]},
        {"unknown_destinations": ["10.0.0.1/24"]},
    ],
    ids=str,
)
def test_privileged_side_refuses(changes: dict[str, Any]) -> None:
    assert asdict(namespace._parse_nic(NIC)) == NIC
    with pytest.raises(ValueError, match=r"\w"):
        namespace._parse_nic({**NIC, **changes})


@pytest.mark.parametrize("uuid", ["", "x", "../../etc", PORTS[0].upper(), PORTS[0] + "\n", None])
def test_path_of_no_uuid(uuid: str) -> None:
    with pytest.raises(ValueError, match="does not match"):
        namespace.namespace_path(uuid)
