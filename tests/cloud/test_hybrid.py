# SPDX-License-Identifier: Apache-2.0
"""Servers of the second host, whose ports Neutron's agent filters by iptables on a bridge."""

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openstack.connection import Connection

from devcloud.host import inside as on_host
from devcloud.network import inside
from devcloud.settings import Settings
from tests.cloud.guests import until
from tests.cloud.leaks import ask_host
from tests.cloud.servers import Opened, Servers, address, fault, host_of, pings


@pytest.fixture
def group(demo: Connection) -> Iterator[Any]:
    """Yield a security group without rules."""
    made = demo.network.create_security_group(name="test-hybrid")
    for rule in made.security_group_rules:
        demo.network.delete_security_group_rule(rule["id"])
    yield made
    until(lambda: not list(demo.network.ports(security_groups=[made.id])))
    demo.network.delete_security_group(made)


def test_ports_behind_a_bridge_of_their_own(
    servers: Servers,
    demo: Connection,
    admin: Connection,
    cloud: Settings,
    opened: Opened,
    group: Any,
    new_port: Callable[..., Any],
    tenant_network: str,
) -> None:
    """iptables filters both directions, and the bridge is deleted with its server."""
    host = cloud.hosts[1]
    port = new_port("private", security_groups=[group.id])
    with opened(host.name):
        server = servers.create("hybrid", networks=[{"port": port.id}])
    assert server.status == "ACTIVE", fault(server)
    assert host_of(admin, server) == host.name
    found = admin.network.get_port(port.id)
    assert (found.binding_vif_type, found.binding_vif_details["ovs_hybrid_plug"]) == ("ovs", True)
    assert f"qbr{port.id[:11]}" in ask_host(cloud, host, "ip", "-o", "link")
    home = address(server)
    assert not pings(tenant_network, home)

    def allow(direction: str) -> None:
        demo.network.create_security_group_rule(
            security_group_id=group.id,
            direction=direction,
            ether_type="IPv4",
            protocol="icmp",
        )

    def reaches_out() -> bool:
        gateway = demo.network.get_subnet(port.fixed_ips[0]["subnet_id"]).gateway_ip
        ping = inside(f"nova-{server.id}", ["ping", "-c", "1", "-w", "1", gateway])
        return subprocess.run(on_host(cloud, host, ping), capture_output=True).returncode == 0

    assert not reaches_out()
    allow("ingress")
    until(lambda: pings(tenant_network, home))
    assert not reaches_out()
    allow("egress")
    until(reaches_out)
    compute = demo.compute
    compute.stop_server(server)
    servers.wait(server, lambda now: now.status == "SHUTOFF")
    assert not pings(tenant_network, home)
    compute.start_server(server)
    servers.wait(server, lambda now: now.status == "ACTIVE")
    until(lambda: pings(tenant_network, home))
    servers.delete(server)
    assert port.id[:11] not in ask_host(cloud, host, "ip", "-o", "link")
