# SPDX-License-Identifier: Apache-2.0
"""A Neutron trunk: several networks on one device of a server, distinguished by VLAN tags."""

import select
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openstack.connection import Connection

from devcloud.settings import Settings
from tests.cloud import frames
from tests.cloud.guests import Guest, until
from tests.cloud.servers import Servers, fault

TAG = 101


@pytest.fixture
def parent(new_port: Callable[..., Any]) -> Any:
    # Neutron refuses a subport with a larger MTU than its parent's.
    return new_port("private-vlan")


@pytest.fixture
def subport(new_port: Callable[..., Any]) -> Any:
    return new_port("private")


@pytest.fixture
def trunk(demo: Connection, parent: Any, subport: Any) -> Iterator[Any]:
    sub = {"port_id": subport.id, "segmentation_type": "vlan", "segmentation_id": TAG}
    made = demo.network.create_trunk(port_id=parent.id, sub_ports=[sub])
    yield made
    demo.network.delete_trunk(made)


@pytest.fixture
def trunk_servers(trunk: Any, servers: Servers) -> Iterator[Servers]:
    """Yield servers and delete them, because a trunk cannot be deleted before its server."""
    yield servers
    servers.delete_all()


def test_a_server_on_a_trunk(
    trunk_servers: Servers,
    demo: Connection,
    cloud: Settings,
    tenant_network: str,
    trunk: Any,
    parent: Any,
    subport: Any,
) -> None:
    server = trunk_servers.create(
        "trunk", image="debian", flavor="d1.small", key_name="demo", networks=[{"port": parent.id}]
    )
    assert server.status == "ACTIVE", fault(server)
    guest = Guest(cloud, server, cloud.tenant_namespace(parent.network_id), "private-vlan")
    # Untagged frames belong to the parent port's network.
    guest.wait()
    until(lambda: demo.network.get_trunk(trunk).status == "ACTIVE")
    until(lambda: demo.network.get_port(subport).status == "ACTIVE")
    (own,) = [ip["ip_address"] for ip in subport.fixed_ips if "." in ip["ip_address"]]
    with frames.listening(tenant_network) as listener:

        def sent(text: str, vlan: int) -> None:
            frame = frames.datagram(
                subport.mac_address, own, listener.mac, listener.address, text, vlan
            )
            guest.ask("sudo perl -", frames.sender(frame))

        def arrives() -> bool:
            sent("tagged", TAG)
            return bool(select.select([listener.process.stdout], [], [], 1.0)[0])

        sent("untagged", 0)
        sent("another tag", TAG + 1)
        until(arrives)
        assert listener.read_until("tagged") == ["tagged"]
