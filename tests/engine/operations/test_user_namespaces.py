# SPDX-License-Identifier: Apache-2.0
"""The operations of Nova on servers with user namespaces of their own, by the host's ids."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from nova import conf

from novadocker import exception
from novadocker.privsep.guest import runtime
from tests import archives
from tests.engine.hosts import ComputeHost
from tests.engine.servers import Server

SNAPSHOT = "5c5c5c5c-0000-4000-8000-000000000001"
POOL = range(1_900_019_712, 1_900_019_712 + 4 * 65536)


@contextmanager
def configured(mode: str) -> Iterator[None]:
    """Set the options of user namespaces."""
    options = {"user_namespaces": mode, "user_namespace_ids": f"{POOL.start}:{len(POOL)}"}
    for name, value in options.items():
        conf.CONF.set_override(name, value, group="docker")
    yield
    for name in options:
        conf.CONF.clear_override(name, group="docker")


@pytest.fixture
def own() -> Iterator[None]:
    """Give each server a user namespace of its own."""
    with configured("required"):
        yield


@pytest.fixture
def shared() -> Iterator[None]:
    """Give a server the ids of the host unless its flavor requests its own."""
    with configured("host"):
        yield


def first_id(host: ComputeHost, server: Server) -> int:
    """Return the host's id of root in a server, as the kernel shows it."""
    pid = host.client.inspect_container(server.name)["State"]["Pid"]
    maps = [Path(f"/proc/{pid}/{name}").read_text().split() for name in ("uid_map", "gid_map")]
    assert maps[0] == maps[1]
    inside, outside, count = map(int, maps[0])
    if outside:
        assert (inside, count) == (0, 65536)
        assert f"Uid:\t{outside}\t" in Path(f"/proc/{pid}/status").read_text()
    return outside


def shell(host: ComputeHost, server: Server, script: str) -> str:
    call = host.client.exec_create(server.name, ["sh", "-c", script])["Id"]
    output: bytes = host.client.exec_start(call)
    return output.decode()


def owners(host: ComputeHost, server: Server) -> dict[str, int]:
    """Return the owners of a server's own files on the disk."""
    found = host.client.inspect_container(server.name)["GraphDriver"]["Data"]["UpperDir"]
    return {
        str(path.relative_to(found)): os.lstat(path).st_uid
        for path in Path(found, "root").iterdir()
    }


def test_the_life_of_a_server(own: None, compute_host: ComputeHost) -> None:
    nova = compute_host.start_nova()
    server = nova.spawn(compute_host.new_server("small", (1,)))
    try:
        first = first_id(compute_host, server)
        assert first in POOL
        made = (
            "mkdir -p /root; cd /root; echo x >zero; touch five user; chown 5 five; chown 1000 user"
        )
        assert shell(compute_host, server, made) == ""
        on_disk = {"root/zero": 0, "root/five": 5, "root/user": 1000}
        assert owners(compute_host, server) == on_disk
        for kind in ("SOFT", "HARD"):
            nova.reboot(server, kind)
            assert first_id(compute_host, server) == first
        nova.power_off(server)
        nova.power_on(server)
        assert first_id(compute_host, server) == first
        nova.stop()
        nova = compute_host.start_nova([server])
        assert first_id(compute_host, server) == first
        server = nova.attach(server, 2)
        assert "eth1" in shell(compute_host, server, "ip link")
        server = nova.detach(server, 2)
        server = nova.rescue(server)
        assert first_id(compute_host, server) == first
        assert shell(compute_host, server, "stat -c %u /rescue/root/five") == "5\n"
        server = nova.unrescue(server)
        assert first_id(compute_host, server) == first
        server = nova.resize(server, "capped")
        server = nova.confirm_resize(server)
        assert first_id(compute_host, server) in POOL
        assert owners(compute_host, server) == on_disk
        assert shell(compute_host, server, "stat -c %u /root/user") == "1000\n"
    finally:
        nova.destroy(server)
        nova.stop()
    assert not runtime.has_own_ids(server.uuid)


def test_servers_have_different_ids_until_none_are_left(
    own: None, compute_host: ComputeHost
) -> None:
    nova = compute_host.start_nova()
    servers = [nova.spawn(compute_host.new_server("small", (1,))) for _ in range(4)]
    try:
        assert {first_id(compute_host, server) for server in servers} == set(POOL[::65536])
        with pytest.raises(exception.PlugFailed, match=r"all 4 ranges .* are in use"):
            nova.spawn(compute_host.new_server("small", (1,)))
        free = first_id(compute_host, servers[0])
        nova.destroy(servers.pop(0))
        servers.append(nova.spawn(compute_host.new_server("small", (1,))))
        assert first_id(compute_host, servers[-1]) == free
    finally:
        for server in servers:
            nova.destroy(server)
        nova.stop()


def test_a_flavor_and_the_option_change(shared: None, compute_host: ComputeHost) -> None:
    """A server that runs keeps what it has; its next start by Nova has what applies then."""
    nova = compute_host.start_nova()
    server = nova.spawn(compute_host.new_server("small", (1,)))
    try:
        assert shell(compute_host, server, "mkdir -p /root; touch /root/file") == ""
        assert first_id(compute_host, server) == 0
        server = replace(server, flavor="own")
        nova.stop()
        # The upgrade of a host with running servers.
        nova = compute_host.start_nova([server])
        assert first_id(compute_host, server) == 0
        assert "eth0" in shell(compute_host, server, "ip link")
        nova.reboot(server)
        assert first_id(compute_host, server) > 65535
        assert shell(compute_host, server, "stat -c %u /root/file") == "0\n"
        server = replace(server, flavor="small")
        nova.stop()
        nova = compute_host.start_nova([server])
        assert first_id(compute_host, server) > 65535
        nova.reboot(server, "SOFT")
        assert first_id(compute_host, server) == 0
        assert "10.7.0.1/16" in shell(compute_host, server, "ip address show eth0")
    finally:
        nova.destroy(server)
        nova.stop()


def test_an_upgrade_of_a_host_with_servers(compute_host: ComputeHost) -> None:
    with configured("host"):
        nova = compute_host.start_nova()
        runs, stopped = (nova.spawn(compute_host.new_server("small", (n,))) for n in (1, 2))
        for server in (runs, stopped):
            made = "mkdir -p /root; touch /root/file /data/file; chown 5 /root/file /data/file"
            assert shell(compute_host, server, made) == ""
        nova.power_off(stopped)
        nova.stop()
    with configured("own"):
        nova = compute_host.start_nova([runs, stopped])
        try:
            nova.periodic()
            assert first_id(compute_host, runs) == 0
            runs = nova.attach(runs, 3)
            assert "eth1" in shell(compute_host, runs, "ip link")
            # Behind Nova's back.
            compute_host.client.restart(runs.name, timeout=0)
            assert first_id(compute_host, runs) == 0
            assert "eth1" in shell(compute_host, runs, "ip link")
            nova.power_on(stopped)
            nova.reboot(runs)
            found = {first_id(compute_host, server) for server in (runs, stopped)}
            assert len(found) == 2
            assert found < set(POOL[::65536])
            for server in (runs, stopped):
                seen = shell(compute_host, server, "stat -c %u /root/file /data/file /root")
                assert seen == "5\n5\n0\n"
                assert owners(compute_host, server) == {"root/file": 5}
        finally:
            for server in (runs, stopped):
                nova.destroy(server)
            nova.stop()


def test_a_snapshot_has_the_owners_of_the_disk(own: None, compute_host: ComputeHost) -> None:
    nova = compute_host.start_nova()
    server = nova.spawn(compute_host.new_server("small", (1,)))
    try:
        assert shell(compute_host, server, "mkdir -p /root; touch /root/a; chown 5 /root/a") == ""
        nova.snapshot(server, SNAPSHOT)
        assert archives.owners(compute_host.glance.folder / SNAPSHOT)["root/a"] == (5, 0)
    finally:
        nova.destroy(server)
        nova.stop()
