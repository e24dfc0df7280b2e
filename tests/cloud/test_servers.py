# SPDX-License-Identifier: Apache-2.0
"""The life of a server, as a tenant sees it."""

import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from openstack.connection import Connection

from devcloud.demo import fixed_address, ssh
from devcloud.network import inside
from devcloud.settings import Settings
from tests.cloud.guests import until
from tests.cloud.owners import ask_placement, engine_of, ids_of, shell
from tests.cloud.servers import Servers, address, fault, pings
from tests.cloud.test_orphans import away

ACTIVE, SHUTOFF = (lambda s: s.status == "ACTIVE"), (lambda s: s.status == "SHUTOFF")


@pytest.fixture
def engine(cloud: Settings) -> Any:
    client = engine_of(cloud, cloud.hosts[0])
    yield client
    client.close()


def test_a_server_is_reached_from_its_network(
    servers: Servers, tenant_network: str, demo: Connection
) -> None:
    server = servers.create("web")
    assert server.status == "ACTIVE", fault(server)
    assert pings(tenant_network, address(server))
    # The DHCP server has no IPv6 address, so ping another server.
    other = servers.create("other")
    assert pings(f"nova-{other.id}", address(server, version=6))
    assert "ready" in demo.compute.get_server_console_output(server)["output"]


def test_a_key_lets_in_by_ssh(servers: Servers, tenant_network: str, cloud: Settings) -> None:
    server = servers.create("login", image="debian", flavor="d1.small", key_name="demo")
    assert server.status == "ACTIVE", fault(server)
    question = "hostname; hostname --fqdn; cat /etc/resolv.conf; curl -s http://169.254.169.254/"
    command = inside(tenant_network, [*ssh(cloud, fixed_address(server)), question])
    deadline = time.monotonic() + 60
    while (done := subprocess.run(command, capture_output=True, text=True)).returncode != 0:
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.5)
    lines = done.stdout.splitlines()
    assert lines[0] == "login"
    assert lines[1].startswith("login.")
    assert any(line.startswith("nameserver ") for line in lines)
    assert "latest" in lines


def test_stop_start_reboot_keep_address_and_data(
    servers: Servers, tenant_network: str, demo: Connection, engine: Any
) -> None:
    server = servers.create("cycle")
    home = address(server)
    ids = ids_of(engine, server)
    shell(engine, server, "printf data >/kept")
    for act, words, reached in (
        (demo.compute.stop_server, (), SHUTOFF),
        (demo.compute.start_server, (), ACTIVE),
        (demo.compute.reboot_server, ("SOFT",), ACTIVE),
        (demo.compute.reboot_server, ("HARD",), ACTIVE),
    ):
        act(server, *words)
        server = servers.wait(server, reached)
        assert pings(tenant_network, home) is (server.status == "ACTIVE")
    assert shell(engine, server, "cat /kept") == "data"
    assert ids_of(engine, server) == ids
    restarted = run_inside(engine, server, "reboot", "-f")

    def stays_active() -> bool:
        assert ACTIVE(demo.compute.get_server(server))
        return restarted()

    until(stays_active)
    assert pings(tenant_network, home)
    assert stays_active()
    run_inside(engine, server, "poweroff", "-f")
    servers.wait(server, SHUTOFF)


def run_inside(engine: Any, server: Any, *command: str) -> Callable[[], bool]:
    """Run a command in a server. Return a function that returns True when it runs anew."""

    def state() -> Any:
        return engine.inspect_container(f"nova-{server.id}")["State"]

    before = state()["StartedAt"]
    call = engine.exec_create(f"nova-{server.id}", list(command))["Id"]
    engine.exec_start(call, detach=True)
    return lambda: bool(state()["Running"] and state()["StartedAt"] != before)


@pytest.mark.usefixtures("long_run")
def test_a_reboot_from_inside_while_nova_compute_is_away(
    servers: Servers, tenant_network: str, cloud: Settings, admin: Connection, engine: Any
) -> None:
    server = servers.create("away")
    with away(cloud, admin, cloud.hosts[0].name):
        restarted = run_inside(engine, server, "reboot", "-f")
        until(lambda: not engine.inspect_container(f"nova-{server.id}")["State"]["Running"])
    until(restarted, 120)
    assert ACTIVE(servers.wait(server, lambda s: s.power_state == 1))
    assert pings(tenant_network, address(server))


@pytest.mark.parametrize(
    ("stop", "go", "status"),
    [("pause", "unpause", "PAUSED"), ("suspend", "resume", "SUSPENDED")],
)
def test_freeze(
    servers: Servers, tenant_network: str, demo: Connection, stop: str, go: str, status: str
) -> None:
    server = servers.create("frozen")
    getattr(demo.compute, f"{stop}_server")(server)
    servers.wait(server, lambda s: s.status == status)
    getattr(demo.compute, f"{go}_server")(server)
    servers.wait(server, ACTIVE)
    assert pings(tenant_network, address(server))


def test_a_restart_behind_novas_back_keeps_the_network(
    servers: Servers, tenant_network: str, engine: Any
) -> None:
    server = servers.create("behind")
    engine.restart(f"nova-{server.id}", timeout=0)
    assert pings(tenant_network, address(server))


def test_a_server_that_dies_is_shut_off_and_starts_again(
    servers: Servers, tenant_network: str, demo: Connection, engine: Any
) -> None:
    server = servers.create("mortal")
    engine.kill(f"nova-{server.id}")
    servers.wait(server, SHUTOFF)
    demo.compute.start_server(server)
    servers.wait(server, ACTIVE)
    assert pings(tenant_network, address(server))


def test_a_paused_and_a_stopped_server_can_be_deleted(servers: Servers, demo: Connection) -> None:
    paused, stopped = servers.create("paused"), servers.create("stopped")
    demo.compute.pause_server(paused)
    demo.compute.stop_server(stopped)
    servers.wait(paused, lambda s: s.status == "PAUSED")
    servers.wait(stopped, SHUTOFF)
    servers.delete_all()


def test_diagnostics(servers: Servers, admin: Connection) -> None:
    server = servers.create("measured")
    answer = admin.compute.get(
        f"/servers/{server.id}/diagnostics", headers={"OpenStack-API-Version": "compute 2.48"}
    )
    found = answer.json()
    assert (found["state"], found["hypervisor"]) == ("running", "docker")
    assert found["num_cpus"] >= 1
    assert found["memory_details"]["maximum"] == 256
    assert found["memory_details"]["used"] >= 0
    assert sum(cpu["time"] for cpu in found["cpu_details"]) > 0
    (disk,), (nic,) = found["disk_details"], found["nic_details"]
    counted = ("read_bytes", "read_requests", "write_bytes", "write_requests")
    assert all(disk[name] >= 0 for name in counted)
    assert all(nic[f"{way}_{name}"] >= 0 for way in ("rx", "tx") for name in ("octets", "packets"))
    assert admin.compute.get(f"/servers/{server.id}/diagnostics").ok


def test_rebuild_keeps_the_address(servers: Servers, tenant_network: str, demo: Connection) -> None:
    server = servers.create("rebuilt")
    demo.compute.rebuild_server(server, image=demo.image.find_image("busybox").id)
    after = servers.wait(server, ACTIVE)
    assert address(after) == address(server)
    assert pings(tenant_network, address(server))


def test_hypervisor_and_traits(admin: Connection) -> None:
    (hypervisor,) = [h for h in admin.compute.hypervisors(details=True) if h.name == "host1"]
    assert hypervisor.hypervisor_type == "docker"
    answer = ask_placement(admin, f"/resource_providers/{hypervisor.id}/traits")
    assert "CUSTOM_HYPERVISOR_DOCKER" in answer["traits"]


def test_twenty_servers_at_once(servers: Servers, tenant_network: str, demo: Connection) -> None:
    check_boots_at_once(servers, tenant_network, demo, 20)


@pytest.mark.usefixtures("long_run")
def test_fifty_servers_at_once(servers: Servers, tenant_network: str, demo: Connection) -> None:
    check_boots_at_once(servers, tenant_network, demo, 50)


def check_boots_at_once(
    servers: Servers, tenant_network: str, demo: Connection, count: int
) -> None:
    first = servers.create("many", wait=False, min_count=count, max_count=count)
    assert first.id
    deadline = time.monotonic() + 400
    while True:
        found = list(demo.compute.servers(name="^many"))
        servers.made = [server.id for server in found]
        if len(found) == count and all(s.status != "BUILD" for s in found):
            break
        assert time.monotonic() < deadline, [s.status for s in found]
        time.sleep(2)
    assert [fault(s) for s in found if s.status != "ACTIVE"] == []
    assert all(pings(tenant_network, address(server)) for server in found)
