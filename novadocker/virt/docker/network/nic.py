# SPDX-License-Identifier: Apache-2.0
"""Pure: computes the devices, addresses and routes of an instance from Nova's network model."""

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from types import MappingProxyType

from nova.network import model as network_model

from novadocker import naming
from novadocker.privsep.network.types import Nic, Route

_DEFAULTS = ("0.0.0.0/0", "::/0")


def device_names(
    network_info: network_model.NetworkInfo, recorded: Mapping[str, str]
) -> dict[str, str]:
    """Return the name of each port's guest device: as recorded, else the lowest free ethN.

    Ports without a record are eth0, eth1, ... in Neutron's order.

    :param recorded: names by port id; of two ports with the same name the first keeps it
    """
    names: dict[str, str] = {}
    for vif in network_info:
        name = recorded.get(vif["id"])
        if name and name not in names.values():
            names[vif["id"]] = name
    free = (name for name in map(naming.guest_device, count()) if name not in names.values())
    return {vif["id"]: names.get(vif["id"]) or next(free) for vif in network_info}


def nics_from_network_info(
    network_info: network_model.NetworkInfo,
    recorded: Mapping[str, str] = MappingProxyType({}),
    more: tuple[str, Route] | None = None,
) -> tuple[Nic, ...]:
    """Return the NICs in Neutron's order, with the names of ``device_names``.

    The NICs lack the fields that depend on the kind of the VIF.

    Each destination has one route: the first NIC with a route to it keeps it, and no route
    replaces the subnet of a NIC's address. So each address family has one default route. A
    subnet's gateway precedes a default route among its host routes, as in Neutron's DHCP agent.

    :param recorded: names of guest devices by port id
    :param more: a further route, and the id of the port that gets it
    """
    taken = {
        str(ipaddress.ip_interface(address).network)
        for vif in network_info
        for address in _addresses(vif)
    }
    names = device_names(network_info, recorded)
    found = []
    for vif in network_info:
        routes = []
        further = [more[1]] if more and more[0] == vif["id"] else []
        for route in [*_routes(vif), *further]:
            if route.destination not in taken:
                taken.add(route.destination)
                routes.append(route)
        found.append(
            Nic(
                port_id=vif["id"],
                host_device=host_device_name(vif),
                guest_device=names[vif["id"]],
                mac=vif["address"].lower(),
                mtu=vif["network"].get_meta("mtu") if vif["network"] else None,
                addresses=tuple(_addresses(vif)),
                routes=tuple(routes),
            )
        )
    return tuple(found)


def dns_from_network_info(network_info: network_model.NetworkInfo) -> tuple[str, ...]:
    """Return the name servers of all subnets, each once, in Neutron's order.

    For a subnet without name servers, its DHCP server is returned, as Neutron's DHCP agent does.
    """
    found = []
    for vif in network_info:
        for subnet in _subnets(vif):
            servers = [server["address"] for server in subnet["dns"]]
            dhcp_server = subnet.get_meta("dhcp_server")
            if not servers and dhcp_server and subnet.get_meta("enable_dhcp"):
                servers = [dhcp_server]
            found += servers
    return tuple(dict.fromkeys(found))


def host_device_name(vif: network_model.VIF) -> str:
    """Return the name of a VIF's host device, the same that Nova passes to os-vif."""
    name: str = vif["devname"] or naming.host_device(vif["id"])
    return name


def _subnets(vif: network_model.VIF) -> Iterator[network_model.Subnet]:
    if vif["network"]:
        yield from (subnet for subnet in vif["network"]["subnets"] if subnet["ips"])


def _addresses(vif: network_model.VIF) -> Iterable[str]:
    for subnet in _subnets(vif):
        length = ipaddress.ip_network(subnet["cidr"]).prefixlen
        for address in subnet["ips"]:
            yield str(ipaddress.ip_interface(f"{address['address']}/{length}"))


def _routes(vif: network_model.VIF) -> Iterable[Route]:
    """Yield a VIF's routes, the preferred one of each destination first."""
    for subnet in _subnets(vif):
        if gateway := _gateway(subnet["gateway"]):
            yield Route(_DEFAULTS[ipaddress.ip_address(gateway).version == 6], gateway)
        for route in subnet["routes"]:
            destination = str(ipaddress.ip_network(route["cidr"], strict=False))
            yield Route(destination, _gateway(route["gateway"]))


def _gateway(address: network_model.IP | None) -> str | None:
    """Return an address as text, or None; Neutron's unspecified address also means no gateway."""
    if address is None or address["address"] is None:
        return None
    gateway = ipaddress.ip_address(address["address"])
    return None if gateway.is_unspecified else str(gateway)
