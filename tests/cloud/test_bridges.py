# SPDX-License-Identifier: Apache-2.0
"""Servers on a network of Linux bridges, whose ports this project's mechanism driver binds."""

from collections.abc import Iterator

import pytest
from openstack.connection import Connection
from openstack.network.v2.network import Network

from devcloud.network import FLAT_BRIDGE, NAMESPACE, ip
from tests.cloud.servers import Servers, address, fault, pings

HOST_ADDRESS = "10.9.0.1"


@pytest.fixture(scope="module")
def network(admin: Connection) -> Iterator[Network]:
    """Yield a flat network on Linux bridges, with an address of the test on it."""
    made = admin.network.create_network(
        name="bridged",
        project_id=admin.identity.find_project("demo").id,
        provider_network_type="flat",
        provider_physical_network="physflat",
        is_port_security_enabled=False,
    )
    admin.network.create_subnet(
        network_id=made.id,
        project_id=made.project_id,
        ip_version=4,
        cidr="10.9.0.0/24",
        gateway_ip=HOST_ADDRESS,
        is_dhcp_enabled=False,
    )
    ip("-n", NAMESPACE, "address", "add", f"{HOST_ADDRESS}/24", "dev", FLAT_BRIDGE)
    yield made
    ip("-n", NAMESPACE, "address", "delete", f"{HOST_ADDRESS}/24", "dev", FLAT_BRIDGE)
    admin.network.delete_network(made)


def test_server_on_a_linux_bridge(servers: Servers, admin: Connection, network: Network) -> None:
    server = servers.create("bridged", networks=[{"uuid": network.id}])
    assert server.status == "ACTIVE", fault(server)
    (port,) = admin.network.ports(device_id=server.id)
    assert (port.binding_vif_type, port.status, port.data_plane_status) == (
        "tap",
        "ACTIVE",
        "ACTIVE",
    )
    assert pings(NAMESPACE, address(server))
    servers.connection.compute.stop_server(server)
    servers.wait(server, lambda now: now.status == "SHUTOFF")
    servers.connection.compute.start_server(server)
    servers.wait(server, lambda now: now.status == "ACTIVE")
    assert pings(NAMESPACE, address(server))


def test_port_taken_from_one_server_to_another(
    servers: Servers, admin: Connection, demo: Connection, network: Network
) -> None:
    """Neutron drops the first server's report and waits for the second server's."""
    port = demo.network.create_port(network_id=network.id)
    for name in ("first", "second"):
        server = servers.create(name, networks=[{"port": port.id}])
        assert server.status == "ACTIVE", fault(server)
        assert admin.network.get_port(port.id).data_plane_status == "ACTIVE"
        servers.delete_all()
        assert admin.network.get_port(port.id).data_plane_status is None
    demo.network.delete_port(port)


def test_port_with_port_security_is_not_bound(
    servers: Servers, admin: Connection, network: Network
) -> None:
    port = admin.network.create_port(
        network_id=network.id, project_id=network.project_id, is_port_security_enabled=True
    )
    server = servers.create("secured", networks=[{"port": port.id}])
    # Nova tries each host in turn; its fault only reports that no host is left.
    assert server.status == "ERROR"
    assert "retries" in fault(server)
    assert admin.network.get_port(port.id).binding_vif_type == "unbound"
    servers.delete_all()
    admin.network.delete_port(port)
