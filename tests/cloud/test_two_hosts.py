# SPDX-License-Identifier: Apache-2.0
"""Servers on both compute hosts of one cloud."""

import subprocess
import time

import pytest
from openstack.connection import Connection

from devcloud.demo import ssh
from devcloud.network import inside
from devcloud.settings import Settings
from tests.cloud.servers import Opened, Servers, address, fault, host_of

LOGIN_SECONDS = 60
MEGABYTES = 8


@pytest.mark.parametrize("network", ["private", "private-vlan"])
def test_a_network_spans_both_hosts(
    servers: Servers,
    demo: Connection,
    admin: Connection,
    cloud: Settings,
    opened: Opened,
    network: str,
) -> None:
    apart = demo.compute.create_server_group(name="apart", policy="anti-affinity")
    found = demo.network.find_network(network, ignore_missing=False)
    with opened("host1", "host2"):
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
    assert {host_of(admin, server) for server in pair} == {host.name for host in cloud.hosts}
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
