# SPDX-License-Identifier: Apache-2.0
"""Servers on both compute hosts of one cloud."""

import subprocess
import time
from collections.abc import Iterator

import pytest
from openstack.connection import Connection
from openstack.network.v2.network import Network

from devcloud.demo import ssh
from devcloud.network import inside
from devcloud.settings import Settings
from tests.cloud.servers import Opened, Servers, address, fault, host_of

LOGIN_SECONDS = 60
MEGABYTES = 8


@pytest.fixture(params=["private", "private-vlan", "flat"])
def network(
    request: pytest.FixtureRequest, admin: Connection, cloud: Settings
) -> Iterator[Network]:
    """Yield a network of each type that Open vSwitch carries: a tunnel, VLAN and untagged."""
    if request.param != "flat":
        yield admin.network.find_network(request.param, ignore_missing=False)
        return
    if cloud.network == "ovn":
        pytest.skip("with OVN, no observer is on a network of a test")
    made = admin.network.create_network(
        name="flat",
        project_id=admin.identity.find_project("demo").id,
        provider_network_type="flat",
        provider_physical_network="physvlan",
    )
    subnet = admin.network.create_subnet(
        network_id=made.id, project_id=made.project_id, ip_version=4, cidr="10.8.0.0/24"
    )
    # The router connects the servers to the metadata service, which has their key.
    router = admin.network.create_router(name="flat", project_id=made.project_id)
    admin.network.add_interface_to_router(router, subnet_id=subnet.id)
    yield made
    admin.network.remove_interface_from_router(router, subnet_id=subnet.id)
    admin.network.delete_router(router)
    # The network's last ports are deleted with the servers, whose fixture ends first.
    admin.network.delete_network(made)


def test_a_network_spans_both_hosts(
    network: Network,
    servers: Servers,
    demo: Connection,
    admin: Connection,
    cloud: Settings,
    opened: Opened,
) -> None:
    apart = demo.compute.create_server_group(name="apart", policy="anti-affinity")
    with opened("host1", "host2"):
        pair = [
            servers.create(
                f"apart{number}",
                image="debian",
                flavor="d1.small",
                key_name="demo",
                networks=[{"uuid": network.id}],
                scheduler_hints={"group": apart.id},
            )
            for number in range(2)
        ]
    demo.compute.delete_server_group(apart)
    assert [server.status for server in pair] == ["ACTIVE", "ACTIVE"], [*map(fault, pair)]
    assert {host_of(admin, server) for server in pair} == {host.name for host in cloud.hosts}
    for server in pair:
        # The data exceeds one segment, in both directions through host1's namespace of the network.
        ask = [*ssh(cloud, address(server)), f"head -c {MEGABYTES}M /dev/zero"]
        assert len(answer(inside(cloud.tenant_namespace(network.id), ask))) == MEGABYTES << 20


def answer(command: list[object]) -> bytes:
    """Return the output of a command on a server as soon as the server accepts a login."""
    deadline = time.monotonic() + LOGIN_SECONDS
    while (done := subprocess.run(command, capture_output=True)).returncode != 0:  # type: ignore[call-overload]
        assert time.monotonic() < deadline, done.stderr.decode()
        time.sleep(0.5)
    return done.stdout
