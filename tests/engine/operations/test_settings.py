# SPDX-License-Identifier: Apache-2.0
"""What a server's first process finds of its flavor's and image's settings, after each start."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.hosts import ComputeHost
from tests.engine.servers import Server

SYSCTLS = {
    "kernel.msgmax": "16384",
    "kernel.sem": "250\t32000\t32\t100",
    "fs.mqueue.queues_max": "99",
    "net.core.somaxconn": "777",
    "net.ipv4.ip_local_port_range": "20000\t30000",
    "net.ipv4.tcp_keepalive_time": "123",
    "net.ipv4.tcp_rmem": "4096\t65536\t1048576",
}


@pytest.fixture
def server(compute_host: ComputeHost) -> Server:
    properties = {"image_docker_env_COLOUR": "light blue", "image_docker_env_PATH": "/bin"}
    return replace(compute_host.new_server("tuned"), metadata=properties)


def inside(host: ComputeHost, server: Server, *command: str) -> str:
    """Return the output of a command in a server."""
    call = host.client.exec_create(server.name, list(command))["Id"]
    output: bytes = host.client.exec_start(call)
    return output.decode()


def sysctls(host: ComputeHost, server: Server) -> dict[str, str]:
    paths = [f"/proc/sys/{name.replace('.', '/')}" for name in SYSCTLS]
    return dict(zip(SYSCTLS, inside(host, server, "cat", *paths).splitlines(), strict=True))


def environment(host: ComputeHost, server: Server) -> set[str]:
    return set(inside(host, server, "cat", "/proc/1/environ").split("\0"))


def test_each_start_has_the_settings(compute_host: ComputeHost, server: Server) -> None:
    nova = compute_host.start_nova()
    server = nova.spawn(server)
    before = {name: Path(f"/proc/sys/{name.replace('.', '/')}").read_text() for name in SYSCTLS}
    try:
        for kind in ("", "SOFT", "HARD"):
            if kind:
                nova.reboot(server, kind)
            assert sysctls(compute_host, server) == SYSCTLS
            assert {"COLOUR=light blue", "PATH=/bin", "product_name=OpenStack Nova"} <= environment(
                compute_host, server
            )
            # Half of the flavor's 64 MiB.
            assert inside(compute_host, server, "df", "/dev/shm").split()[-5] == "32768"
    finally:
        nova.destroy(server)
        nova.stop()
    after = {name: Path(f"/proc/sys/{name.replace('.', '/')}").read_text() for name in SYSCTLS}
    assert after == before


def test_addresses_of_a_tenant_with_net_admin(compute_host: ComputeHost, server: Server) -> None:
    """As keepalived adds them; they stay until the server starts again."""

    def own() -> tuple[bool, bool]:
        address = "10.7.9.9/32" in inside(compute_host, server, "ip", "address", "show", "eth0")
        return address, "192.0.2.0/24" in inside(compute_host, server, "ip", "route")

    nova = compute_host.start_nova()
    server = nova.spawn(replace(server, ports=(1,)))
    try:
        inside(compute_host, server, "ip", "address", "add", "10.7.9.9/32", "dev", "eth0")
        inside(compute_host, server, "ip", "route", "add", "192.0.2.0/24", "via", "10.7.255.254")
        assert own() == (True, True)
        server = nova.attach(server, 2)
        assert own() == (True, True)
        nova.stop()
        nova = compute_host.start_nova([server])
        assert own() == (True, True)
        server = nova.detach(server, 2)
        assert own() == (True, True)
        nova.reboot(server)
        assert own() == (False, False)
    finally:
        nova.destroy(server)
        nova.stop()
