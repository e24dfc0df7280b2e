# SPDX-License-Identifier: Apache-2.0
"""Servers on both compute hosts of one cloud."""

import subprocess
import time
from collections.abc import Iterator

import pytest
from openstack.connection import Connection

from devcloud.demo import ssh
from devcloud.network import inside
from devcloud.settings import Settings
from tests.cloud.servers import Servers, address, fault

LOGIN_SECONDS = 60
MEGABYTES = 8


@pytest.fixture(autouse=True)
def both_hosts(cloud: Settings, admin: Connection) -> Iterator[None]:
    """Open the hosts after the first, which are closed to all other tests."""
    later = {host.name for host in cloud.hosts[1:]}
    services = [
        service
        for service in admin.compute.services(binary="nova-compute")
        if service.host in later
    ]
    for service in services:
        admin.compute.enable_service(service)
    yield
    for service in services:
        admin.compute.disable_service(service, disabled_reason="closed by the tests")


@pytest.mark.parametrize("network", ["private", "private-vlan"])
def test_a_network_spans_both_hosts(
    servers: Servers, demo: Connection, admin: Connection, cloud: Settings, network: str
) -> None:
    apart = demo.compute.create_server_group(name="apart", policy="anti-affinity")
    found = demo.network.find_network(network, ignore_missing=False)
    pair = [
        servers.create(
            f"apart{number}",
            image="debian",
            flavor="d1.small",
            key_name="demo",
            networks=[{"uuid": found.id}],
            scheduler_hints={"group": apart.id},
        )
        for number in range(2)
    ]
    demo.compute.delete_server_group(apart)
    assert [server.status for server in pair] == ["ACTIVE", "ACTIVE"], [*map(fault, pair)]
    hosts = {admin.compute.get_server(server.id).hypervisor_hostname for server in pair}
    assert hosts == {host.name for host in cloud.hosts}
    for server in pair:
        # more than one segment's worth, both ways through the DHCP server's namespace on host1
        ask = [*ssh(cloud, address(server)), f"head -c {MEGABYTES}M /dev/zero"]
        assert len(answer(inside(f"qdhcp-{found.id}", ask))) == MEGABYTES << 20


def answer(command: list[object]) -> bytes:
    """Return what a command on a server prints, as soon as the server lets it in."""
    deadline = time.monotonic() + LOGIN_SECONDS
    while (done := subprocess.run(command, capture_output=True)).returncode != 0:  # type: ignore[call-overload]
        assert time.monotonic() < deadline, done.stderr.decode()
        time.sleep(0.5)
    return done.stdout
