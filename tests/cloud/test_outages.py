# SPDX-License-Identifier: Apache-2.0
"""Outages of nova-compute's dependencies, after which no program of this driver needs a restart."""

import time
from collections.abc import Iterator

import pytest
from openstack.connection import Connection
from openstack.exceptions import HttpException

from devcloud import supervise
from devcloud.settings import Settings
from tests.cloud.guests import until
from tests.cloud.owners import engine_of
from tests.cloud.servers import Opened, Servers, address, fault, pings

BACK_SECONDS = 180


@pytest.fixture(autouse=True)
def same_processes(cloud: Settings) -> Iterator[None]:
    """Check that each nova-compute and each engine survives a test."""
    names = [f"{what}-{host.name}" for host in cloud.hosts for what in ("nova-compute", "docker")]
    before = [supervise.process_id(cloud, name) for name in names]
    yield
    assert [supervise.process_id(cloud, name) for name in names] == before


def test_the_switch_and_its_agent_are_restarted(
    cloud: Settings, servers: Servers, tenant_network: str, opened: Opened
) -> None:
    # The first host's switch also has the devices of Neutron's routers, so use the second host's.
    with opened("host2"):
        before = servers.create("before")
        assert before.status == "ACTIVE", fault(before)
        until(lambda: pings(tenant_network, address(before)))
        for program in ("ovs-host2", cloud.network_agent(cloud.hosts[1]), "ovsdb-host2"):
            supervise.control(cloud, ["restart", program])
            until(lambda: pings(tenant_network, address(before)), BACK_SECONDS)
        after = servers.create("after")
    assert after.status == "ACTIVE", fault(after)
    until(lambda: pings(tenant_network, address(after)))


def test_the_queue_and_the_database_are_away(
    cloud: Settings,
    servers: Servers,
    admin: Connection,
    tenant_network: str,
    pytestconfig: pytest.Config,
) -> None:
    before, dies = servers.create("before"), servers.create("dies")
    for server in (before, dies):
        assert server.status == "ACTIVE", fault(server)
    known = reports(admin, cloud)
    supervise.control(cloud, ["stop", "rabbitmq", "mariadb"])
    try:
        # No report of this server's end can reach Nova.
        client = engine_of(cloud, cloud.hosts[0])
        client.kill(f"nova-{dies.id}")
        client.close()
        deadline = time.monotonic() + pytestconfig.getoption("--outage")
        while time.monotonic() < deadline:
            assert pings(tenant_network, address(before))
            time.sleep(1)
    finally:
        supervise.control(cloud, ["start", "mariadb", "rabbitmq"])
    until(lambda: reports(admin, cloud) > known, BACK_SECONDS)
    assert pings(tenant_network, address(before))
    servers.wait(dies, lambda now: now.status == "SHUTOFF")
    after = servers.create("after")
    assert after.status == "ACTIVE", fault(after)
    assert pings(tenant_network, address(after))


def reports(admin: Connection, cloud: Settings) -> str:
    """Return the oldest of the hosts' last reports; an empty string if the API does not answer."""
    hosts = {host.name for host in cloud.hosts}
    try:
        services = list(admin.compute.services(binary="nova-compute"))
    except HttpException:
        return ""
    return min(str(found.updated_at) for found in services if found.host in hosts)
