# SPDX-License-Identifier: Apache-2.0
"""Outages of OVN's programs while ports are plugged, unplugged and moved."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from openstack.compute.v2.server import Server
from openstack.connection import Connection

from devcloud import supervise
from devcloud.settings import Settings
from tests.cloud.guests import until
from tests.cloud.owners import has_container
from tests.cloud.servers import Opened, Servers, address, fault, host_of, pings
from tests.cloud.test_servers import ACTIVE

BACK_SECONDS = 120

PROGRAMS = ("ovn-controller-host2", "ovn-northd", "ovn-sb", "ovn-nb")


@pytest.fixture(autouse=True)
def with_ovn(cloud: Settings) -> None:
    """Skip the tests on a cloud with Neutron's agents."""
    if cloud.network != "ovn":
        pytest.skip("this cloud has no OVN")


@contextmanager
def away(cloud: Settings, program: str) -> Iterator[None]:
    """Stop a program during the body."""
    supervise.control(cloud, ["stop", program])
    try:
        yield
    finally:
        supervise.control(cloud, ["start", program])


def begun(servers: Servers, server: Server) -> bool:
    """Return True if the build of a server has reached a host, or waits for Neutron."""
    return servers.connection.compute.get_server(server.id).task_state in ("networking", "spawning")


@pytest.mark.parametrize("program", PROGRAMS)
def test_ports_are_plugged_and_unplugged_during_an_outage(
    cloud: Settings, servers: Servers, tenant_network: str, opened: Opened, program: str
) -> None:
    with opened("host2"):
        stays, goes = servers.create("stays"), servers.create("goes")
        for server in (stays, goes):
            assert server.status == "ACTIVE", fault(server)
        with away(cloud, program):
            new = servers.create("new", wait=False)
            servers.connection.compute.delete_server(goes)
            until(lambda: begun(servers, new))
            # OVN's programs only compute flows; the switch forwards packets without them.
            assert pings(tenant_network, address(stays))
        new = servers.settle(new)
    assert new.status == "ACTIVE", fault(new)
    until(lambda: pings(tenant_network, address(new)), BACK_SECONDS)
    assert pings(tenant_network, address(stays))
    servers.delete(goes)
    assert not has_container(cloud, 1, goes)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_server_moves_during_an_outage(
    cloud: Settings,
    servers: Servers,
    admin: Connection,
    tenant_network: str,
    opened: Opened,
    program: str,
) -> None:
    server = servers.create("mover")
    assert server.status == "ACTIVE", fault(server)
    with opened("host1", "host2"):
        with away(cloud, program):
            admin.compute.migrate_server(server.id)
            until(lambda: host_of(admin, server) == "host2" or has_container(cloud, 1, server))
        server = servers.wait(server, lambda now: now.status in ("VERIFY_RESIZE", "ERROR"))
    assert server.status == "VERIFY_RESIZE", fault(server)
    until(lambda: pings(tenant_network, address(server)), BACK_SECONDS)
    with away(cloud, program):
        servers.connection.compute.revert_server_resize(server)
        until(lambda: not has_container(cloud, 1, server))
    servers.wait(server, ACTIVE)
    assert host_of(admin, server) == "host1"
    until(lambda: pings(tenant_network, address(server)), BACK_SECONDS)
