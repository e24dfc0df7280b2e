# SPDX-License-Identifier: Apache-2.0
"""Hosts of servers: groups, availability zones, hypervisor types, hosts in maintenance."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openstack.connection import Connection

from devcloud import fake
from devcloud.settings import Settings
from tests.cloud.guests import until
from tests.cloud.owners import ask_placement, provider_of
from tests.cloud.servers import Opened, Servers, address, fault, host_of, migrations, pings
from tests.cloud.test_resize import resize
from tests.cloud.test_servers import ACTIVE

ZONE = "test-west"


@pytest.fixture
def zone(admin: Connection) -> Iterator[str]:
    """Yield an availability zone that contains the second host."""
    aggregate = admin.compute.create_aggregate(name=ZONE, availability_zone=ZONE)
    admin.compute.add_host_to_aggregate(aggregate, "host2")
    yield ZONE
    admin.compute.remove_host_from_aggregate(aggregate, "host2")
    admin.compute.delete_aggregate(aggregate)


@pytest.fixture
def fake_host(cloud: Settings, servers: Servers) -> Iterator[str]:
    """Run a compute host with another hypervisor type, which is Nova's fake driver."""
    fake.start(cloud)
    yield fake.HOST
    # Delete the host's servers while its nova-compute is running.
    servers.delete_all()
    fake.stop(cloud)


def test_groups_and_zones(
    servers: Servers, demo: Connection, admin: Connection, opened: Opened, zone: str
) -> None:
    groups = {
        policy: demo.compute.create_server_group(name=policy, policy=policy)
        for policy in ("affinity", "anti-affinity")
    }
    hints = {policy: {"group": group.id} for policy, group in groups.items()}
    with opened("host1", "host2"):
        west = servers.create("west", availability_zone=zone)
        near = servers.create("near", availability_zone=zone, scheduler_hints=hints["affinity"])
        nearer = servers.create("nearer", scheduler_hints=hints["affinity"])
        apart = [
            servers.create(f"apart{number}", scheduler_hints=hints["anti-affinity"])
            for number in range(3)
        ]
    assert {host_of(admin, server) for server in (west, near, nearer)} == {"host2"}
    assert {host_of(admin, server) for server in apart[:2]} == {"host1", "host2"}
    assert apart[2].status == "ERROR"
    assert "No valid host" in fault(apart[2])
    servers.delete_all()
    for group in groups.values():
        demo.compute.delete_server_group(group)


@pytest.fixture
def flavor(admin: Connection) -> Iterator[Callable[[int], str]]:
    """Yield a function that creates a flavor: ``flavor(512)`` has 512 MiB and returns its name."""
    made = []

    def call(memory: int) -> str:
        name = f"test-{memory}-{uuid.uuid4().hex[:8]}"
        made.append(admin.compute.create_flavor(name=name, vcpus=1, ram=memory, disk=1))
        return name

    yield call
    for found in made:
        admin.compute.delete_flavor(found)


def test_a_resize_stays_where_it_fits_and_moves_where_it_does_not(
    servers: Servers,
    admin: Connection,
    tenant_network: str,
    opened: Opened,
    flavor: Callable[[int], str],
    image: Callable[..., str],
) -> None:
    total = memory_of(admin, "host1")
    assert memory_of(admin, "host2") == total
    server = servers.create("resized", flavor=flavor(total // 2))
    assert server.status == "ACTIVE", fault(server)
    # Nova's weigher of failed builds prefers the other host after these.
    damaged = image(b"x")
    for number in range(3):
        assert servers.create(f"damaged{number}", image=damaged).status == "ERROR"
    with opened("host1", "host2"):
        # The other host is empty, so every weigher of load prefers it.
        server = resize(servers, server, flavor(total // 2 - 1))
        assert server.status == "VERIFY_RESIZE", fault(server)
        assert host_of(admin, server) == "host1"
        servers.connection.compute.confirm_server_resize(server)
        server = servers.wait(server, ACTIVE)
        # The sum of the old and the new flavor exceeds a host's memory.
        server = resize(servers, server, flavor(total // 2 + 2))
        assert server.status == "VERIFY_RESIZE", fault(server)
    assert host_of(admin, server) == "host2"
    servers.connection.compute.confirm_server_resize(server)
    server = servers.wait(server, ACTIVE)
    assert host_of(admin, server) == "host2"
    until(lambda: pings(tenant_network, address(server)))


def memory_of(admin: Connection, host: str) -> int:
    """Return a host's memory for servers in MiB."""
    path = f"/resource_providers/{provider_of(admin, host)}/inventories"
    found = ask_placement(admin, path)["inventories"]["MEMORY_MB"]
    return int((found["total"] - found["reserved"]) * found["allocation_ratio"])


def test_images_land_on_their_kind_of_hypervisor(
    servers: Servers,
    admin: Connection,
    image: Callable[..., str],
    busybox: Path,
    fake_host: str,
) -> None:
    ours, others = image(busybox, img_hv_type="docker"), image(busybox, img_hv_type="fake")
    for number in range(2):
        server = servers.create(f"ours{number}", image=ours)
        assert (server.status, host_of(admin, server)) == ("ACTIVE", "host1"), fault(server)
        server = servers.create(f"other{number}", image=others, networks="none")
        assert (server.status, host_of(admin, server)) == ("ACTIVE", fake_host), fault(server)


def test_live_migration_is_refused_and_harms_nothing(
    servers: Servers, admin: Connection, opened: Opened, tenant_network: str
) -> None:
    server = servers.create("stays")
    with opened("host1", "host2"):
        # Since microversion 2.34, the request does not wait for the hosts' answers.
        asked = admin.compute.post(
            f"/servers/{server.id}/action",
            json={"os-migrateLive": {"host": None, "block_migration": "auto"}},
            headers={"OpenStack-API-Version": "compute 2.90"},
        )
        assert asked.status_code == 202, asked.text
        until(lambda: migrations(admin, server) == ["error"])
        server = servers.wait(server, ACTIVE)
    assert host_of(admin, server) == "host1"
    assert pings(tenant_network, address(server))


def test_servers_move_at_once(
    servers: Servers,
    demo: Connection,
    admin: Connection,
    opened: Opened,
    tenant_network: str,
    pytestconfig: pytest.Config,
) -> None:
    count = 10 if pytestconfig.getoption("--every-step") else 5
    made = [servers.create(f"mover{number}", wait=False) for number in range(count)]
    made = [servers.wait(server, ACTIVE) for server in made]
    with opened("host1", "host2"):
        for server in made:
            admin.compute.migrate_server(server.id)
        for server in made:
            now = servers.wait(server, lambda now: now.status in ("VERIFY_RESIZE", "ERROR"))
            assert now.status == "VERIFY_RESIZE", fault(now)
    for server in made:
        demo.compute.confirm_server_resize(server)
    for server in made:
        servers.wait(server, ACTIVE)
        assert host_of(admin, server) == "host2"
        until(lambda server=server: pings(tenant_network, address(server)))
