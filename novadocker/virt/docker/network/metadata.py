# SPDX-License-Identifier: Apache-2.0
"""The route to the metadata service where no router of Neutron leads to it; pure.

On a virtual machine, the DHCP client takes this route from Neutron's DHCP option 121
(neutron.agent.linux.dhcp: _generate_opts_per_subnet). A server here has no DHCP client, and Nova's
network model lacks the route.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nova.network import model as network_model

from novadocker.privsep.network.types import Route

DESTINATION = "169.254.169.254/32"

# neutron_lib.constants
_DHCP = "network:dhcp"
_DISTRIBUTED = "network:distributed"
_ROUTERS = (
    "network:router_interface",
    "network:router_interface_distributed",
    "network:ha_router_replicated_interface",
)
OWNERS = (_DHCP, _DISTRIBUTED, *_ROUTERS)
"""The values of ``device_owner`` of the ports that determine the route."""

# neutron.common.ovn.constants: the device id of the port of OVN's metadata agent
_OVN_PREFIX = "ovnmeta-"


@dataclass(frozen=True)
class ServicePort:
    """A port of Neutron's own agents.

    :ivar device_owner: one of ``OWNERS``
    """

    network_id: str
    device_owner: str
    device_id: str
    addresses: tuple[str, ...]

    @property
    def is_of_ovn(self) -> bool:
        """True if OVN's metadata agent answers at this port."""
        return self.device_id.startswith(_OVN_PREFIX)


def networks(network_info: network_model.NetworkInfo) -> tuple[str, ...]:
    """Return the ids of the networks whose service ports determine the route, each once.

    They are the IPv4 networks with DHCP. None matters if Neutron gives the route itself.
    """
    subnets = list(_subnets(network_info))
    if any(route["cidr"] == DESTINATION for _, subnet in subnets for route in subnet["routes"]):
        return ()
    return tuple(dict.fromkeys(vif["network"]["id"] for vif, _ in subnets))


def route(
    network_info: network_model.NetworkInfo, ports: Iterable[ServicePort]
) -> tuple[str, Route] | None:
    """Return the port that has the route, and the route; None if none is needed or possible.

    With OVN, the first port with a metadata port in its subnet has the route. Otherwise no port has
    it if any has a router at its gateway, because the default route leads to the service there.
    Without a router, it leads through the first DHCP server.

    :param ports: the service ports of ``networks``
    """
    found = list(_beside(network_info, ports))
    for vif_id, _, port, address in found:
        if port.is_of_ovn:
            return vif_id, Route(DESTINATION, address)
    if _is_routed(found):
        return None
    for vif_id, _, port, address in found:
        if port.device_owner == _DHCP:
            return vif_id, Route(DESTINATION, address)
    return None


def is_pending(network_info: network_model.NetworkInfo, ports: Iterable[ServicePort]) -> bool:
    """Return True if the service may be reached as soon as a network has its DHCP server."""
    known = list(ports)
    return (
        bool(networks(network_info))
        and route(network_info, known) is None
        and not _is_routed(_beside(network_info, known))
    )


_Beside = tuple[str, str | None, ServicePort, str]


def _is_routed(found: Iterable[_Beside]) -> bool:
    return any(
        port.device_owner in _ROUTERS and address == gateway for _, gateway, port, address in found
    )


def _beside(
    network_info: network_model.NetworkInfo, ports: Iterable[ServicePort]
) -> Iterator[_Beside]:
    """Yield the id and the gateway of each VIF with each service port's address in its subnet."""
    known = sorted(ports, key=lambda port: port.addresses)
    for vif, subnet in _subnets(network_info):
        network = ipaddress.ip_network(subnet["cidr"])
        gateway = subnet["gateway"] and subnet["gateway"]["address"]
        for port in known:
            for address in port.addresses if port.network_id == vif["network"]["id"] else ():
                if ipaddress.ip_address(address) in network:
                    yield vif["id"], gateway, port, address


def _subnets(
    network_info: network_model.NetworkInfo,
) -> Iterator[tuple[network_model.VIF, network_model.Subnet]]:
    """Yield the IPv4 subnets with DHCP and an address of the VIF, with the VIF."""
    for vif in network_info:
        for subnet in vif["network"]["subnets"] if vif["network"] else ():
            if subnet["ips"] and subnet["version"] == 4 and subnet.get_meta("enable_dhcp"):
                yield vif, subnet
