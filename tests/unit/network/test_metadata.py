# SPDX-License-Identifier: Apache-2.0
"""The route to the metadata service, as DHCP option 121 has it on a virtual machine."""

from collections.abc import Sequence
from typing import Any

import pytest
from nova.network import model

from novadocker.privsep.network.types import Route
from novadocker.virt.docker.network import metadata
from novadocker.virt.docker.network.metadata import ServicePort
from novadocker.virt.docker.network.nic import nics_from_network_info


def vif(
    number: int, gateway: str | None = "1", routes: Sequence[str] = (), **meta: Any
) -> model.VIF:
    hop = model.IP(gateway and f"10.{number}.0.{gateway}", type="gateway")
    subnet = model.Subnet(
        cidr=f"10.{number}.0.0/24",
        gateway=hop,
        ips=[model.FixedIP(address=f"10.{number}.0.5")],
        routes=[model.Route(cidr=cidr, gateway=model.IP(f"10.{number}.0.9")) for cidr in routes],
        **{"enable_dhcp": True, **meta},
    )
    return model.VIF(
        id=f"port{number}",
        address="fa:16:3e:00:00:05",
        network=model.Network(id=f"net{number}", subnets=[subnet]),
    )


def dhcp(number: int, *hosts: int) -> ServicePort:
    addresses = tuple(f"10.{number}.0.{host}" for host in hosts)
    return ServicePort(f"net{number}", "network:dhcp", f"dhcp{hosts}", addresses)


def router(number: int, host: int = 1) -> ServicePort:
    address = f"10.{number}.0.{host}"
    return ServicePort(f"net{number}", "network:ha_router_replicated_interface", "r1", (address,))


def ovn(number: int) -> ServicePort:
    return ServicePort(
        f"net{number}", "network:distributed", f"ovnmeta-net{number}", (f"10.{number}.0.3",)
    )


V6 = ServicePort("net1", "network:dhcp", "dhcp", ("2001:db8::2",))


@pytest.mark.parametrize(
    ("vifs", "ports", "found", "pending"),
    [
        pytest.param([vif(1)], [], None, True, id="nothing is known"),
        pytest.param([vif(1)], [dhcp(1, 2)], ("port1", "10.1.0.2"), False, id="no router"),
        pytest.param([vif(1, None)], [dhcp(1, 2)], ("port1", "10.1.0.2"), False, id="no gateway"),
        pytest.param([vif(1)], [dhcp(1, 2), router(1)], None, False, id="router"),
        pytest.param(
            [vif(1)],
            [dhcp(1, 2), router(1, 7)],
            ("port1", "10.1.0.2"),
            False,
            id="router elsewhere",
        ),
        pytest.param(
            [vif(1)], [dhcp(1, 4), dhcp(1, 2)], ("port1", "10.1.0.2"), False, id="two servers"
        ),
        pytest.param([vif(1)], [V6, dhcp(1, 2)], ("port1", "10.1.0.2"), False, id="IPv6 as well"),
        pytest.param([vif(1)], [dhcp(2, 2)], None, True, id="of another network"),
        pytest.param([vif(1), vif(2)], [dhcp(1, 2), router(2)], None, False, id="router of second"),
        pytest.param(
            [vif(1), vif(2)],
            [dhcp(1, 2), dhcp(2, 2)],
            ("port1", "10.1.0.2"),
            False,
            id="two isolated",
        ),
        pytest.param([vif(1)], [ovn(1), router(1)], ("port1", "10.1.0.3"), False, id="OVN"),
        pytest.param([vif(1, enable_dhcp=False)], [dhcp(1, 2)], None, False, id="no DHCP"),
    ],
)
def test_route(
    vifs: list[model.VIF],
    ports: list[ServicePort],
    found: tuple[str, str] | None,
    pending: bool,
) -> None:
    info = model.NetworkInfo(vifs)
    expected = found and (found[0], Route("169.254.169.254/32", found[1]))
    assert metadata.route(info, ports) == expected
    assert metadata.is_pending(info, ports) is pending
    routes = [
        (nic.port_id, route)
        for nic in nics_from_network_info(info, {}, expected)
        for route in nic.routes
        if route.destination == metadata.DESTINATION
    ]
    assert routes == ([expected] if expected else [])


def test_networks_to_ask_about() -> None:
    assert metadata.networks(model.NetworkInfo([vif(1), vif(2)])) == ("net1", "net2")
    assert metadata.networks(model.NetworkInfo([vif(1, enable_dhcp=False)])) == ()
    given = model.NetworkInfo([vif(1), vif(2, routes=["169.254.169.254/32"])])
    assert metadata.networks(given) == ()
