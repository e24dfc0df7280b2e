# SPDX-License-Identifier: Apache-2.0
"""Network namespaces of the first host on the tenant's networks of a cloud with OVN.

They reach servers on any host, as the namespaces of Neutron's DHCP agent do in other clouds. OVN's
own namespaces exist only on hosts with servers of the network.
"""

import ipaddress
from typing import Any

from openstack.connection import Connection

from devcloud.clients import connect
from devcloud.network import ip, list_namespaces, remove_namespace
from devcloud.settings import Settings, observers_file
from devcloud.switch import vsctl

NETWORKS = ("private", "private-vlan")

OWNER = "devcloud:observer"


def ensure(settings: Settings) -> None:
    """Create the missing namespaces, each with a port of its network. Idempotent."""
    with connect(settings, "admin") as admin:
        networks = [admin.network.find_network(name, ignore_missing=False) for name in NETWORKS]
        names = {network.id: settings.tenant_namespace(network.id) for network in networks}
        # The names are noted first, so that the clean-up finds what an interrupted start leaves.
        observers_file(settings.folder).write_text("\n".join(names.values()))
        for network in networks:
            # An interrupted start leaves a namespace without an address.
            if not _has_address(names[network.id]):
                remove_namespace(names[network.id])
                _connect(settings, admin, network, names[network.id])


def _has_address(namespace: str) -> bool:
    if namespace not in list_namespaces():
        return False
    return "obs" in ip("-n", namespace, "-o", "address", "show", "scope", "global")


def _connect(settings: Settings, admin: Connection, network: Any, namespace: str) -> None:
    host = settings.hosts[0]
    port = next(iter(admin.network.ports(network_id=network.id, device_owner=OWNER)), None)
    if port is None:
        port = admin.network.create_port(
            network_id=network.id,
            device_owner=OWNER,
            binding_host_id=host.name,
            is_port_security_enabled=False,
        )
    device = f"obs{port.id}"[:14]
    vsctl(
        settings,
        host,
        *("--if-exists", "del-port", "br-int", device, "--", "add-port", "br-int", device),
        *("--", "set", "interface", device, "type=internal", f"external_ids:iface-id={port.id}"),
        f'external_ids:attached-mac="{port.mac_address}"',
    )
    ip("netns", "add", namespace)
    ip("-n", host.namespace, "link", "set", device, "netns", namespace)
    inside = ("-n", namespace)
    ip(*inside, "link", "set", device, "address", port.mac_address, "mtu", str(network.mtu), "up")
    ip(*inside, "link", "set", "lo", "up")
    for address in port.fixed_ips:
        subnet = admin.network.get_subnet(address["subnet_id"])
        length = ipaddress.ip_network(subnet.cidr).prefixlen
        ip(*inside, "address", "add", f"{address['ip_address']}/{length}", "dev", device)
