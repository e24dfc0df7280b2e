# SPDX-License-Identifier: Apache-2.0
"""Resize on the same host, as a tenant sees it, without interruption of the server."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openstack.compute.v2.server import Server
from openstack.connection import Connection

from devcloud import supervise
from devcloud.settings import Settings
from tests.cloud.owners import ask_placement
from tests.cloud.servers import Servers, address, fault, pings

MIB = 1 << 20


@pytest.fixture(scope="module")
def flavors(admin: Connection) -> Iterator[dict[str, str]]:
    """Yield flavors' names by a short name; delete the flavors at the end."""
    specs = {
        "small": (1, 128, {"quota:vif_inbound_average": "2000"}),
        "large": (2, 320, {"quota:disk_write_bytes_sec": "5000000", "docker:pids_limit": "77"}),
        "crumb": (1, 16, {}),
    }
    made = {}
    for name, (vcpus, ram, extra) in specs.items():
        made[name] = admin.compute.create_flavor(
            name=f"test-{name}-{uuid.uuid4().hex[:8]}", vcpus=vcpus, ram=ram, disk=1
        )
        if extra:
            admin.compute.create_flavor_extra_specs(made[name], extra)
    yield {name: flavor.name for name, flavor in made.items()}
    for flavor in made.values():
        admin.compute.delete_flavor(flavor)


def resize(servers: Servers, server: Server, flavor: str, status: str = "VERIFY_RESIZE") -> Server:
    compute = servers.connection.compute
    compute.resize_server(server, compute.find_flavor(flavor, ignore_missing=False))
    return servers.wait(server, lambda now: now.status in (status, "ERROR"))


def limits_of(engine: Any, server: Server) -> tuple[int, int, int]:
    """Return the process id, the kernel's memory limit in MiB and the engine's pids limit."""
    found = engine.inspect_container(f"nova-{server.id}")
    pid = found["State"]["Pid"]
    memory = found["HostConfig"]["Memory"]
    if pid:
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            if names == "memory":
                file = Path("/sys/fs/cgroup/memory", path.lstrip("/"), "memory.limit_in_bytes")
                memory = int(file.read_text())
    return pid, memory // MIB, found["HostConfig"]["PidsLimit"]


def test_resize_confirm_revert_under_a_running_server(
    servers: Servers,
    tenant_network: str,
    demo: Connection,
    admin: Connection,
    engine: Any,
    cloud: Settings,
    flavors: dict[str, str],
) -> None:
    server = servers.create("resized", flavor=flavors["small"])
    assert server.status == "ACTIVE", fault(server)
    pid, memory, _ = limits_of(engine, server)
    assert memory == 128
    server = resize(servers, server, flavors["large"])
    assert server.status == "VERIFY_RESIZE", fault(server)
    assert limits_of(engine, server) == (pid, 320, 77)
    demo.compute.confirm_server_resize(server)
    servers.wait(server, lambda now: now.status == "ACTIVE")
    used = ask_placement(admin, f"/allocations/{server.id}")["allocations"]
    assert [row["resources"]["MEMORY_MB"] for row in used.values()] == [320]

    server = resize(servers, server, flavors["small"])
    assert limits_of(engine, server)[:2] == (pid, 128)
    # nova-compute restarts between the resize and its revert.
    supervise.control(cloud, ["restart", f"nova-compute-{cloud.hosts[0].name}"])
    demo.compute.revert_server_resize(server)
    servers.wait(server, lambda now: now.status in ("ACTIVE", "ERROR"))
    assert limits_of(engine, server) == (pid, 320, 77)
    assert pings(tenant_network, address(server))

    # The driver refuses this resize with both numbers and leaves the server unchanged.
    write = ["dd", "if=/dev/zero", "of=/dev/shm/held", "bs=1M", "count=40"]
    engine.exec_start(engine.exec_create(f"nova-{server.id}", write)["Id"])
    server = resize(servers, server, flavors["crumb"], "ACTIVE")
    assert "more than the 16 MiB of the flavor" in why_it_failed(admin, server)
    assert server.status == "ACTIVE"
    assert limits_of(engine, server) == (pid, 320, 77)


def why_it_failed(admin: Connection, server: Server) -> str:
    """Return the error of the last resize, because Nova shows a fault only for servers in ERROR."""
    path, headers = (
        f"/servers/{server.id}/os-instance-actions",
        {"OpenStack-API-Version": "compute 2.84"},
    )
    listed = admin.compute.get(path, headers=headers).json()["instanceActions"]
    resized = next(action for action in listed if action["action"] == "resize")
    assert resized["message"] == "Error"
    shown = admin.compute.get(f"{path}/{resized['request_id']}", headers=headers).json()
    return " ".join(event["details"] or "" for event in shown["instanceAction"]["events"])


def test_resize_of_a_stopped_server(
    servers: Servers, demo: Connection, engine: Any, flavors: dict[str, str]
) -> None:
    server = servers.create("stopped", flavor=flavors["small"])
    demo.compute.stop_server(server)
    servers.wait(server, lambda now: now.status == "SHUTOFF")
    server = resize(servers, server, flavors["large"])
    assert server.status == "VERIFY_RESIZE", fault(server)
    assert limits_of(engine, server) == (0, 320, 77)
    demo.compute.confirm_server_resize(server)
    servers.wait(server, lambda now: now.status == "SHUTOFF")
    demo.compute.start_server(server)
    servers.wait(server, lambda now: now.status == "ACTIVE")
    assert limits_of(engine, server)[1:] == (320, 77)
