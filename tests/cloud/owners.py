# SPDX-License-Identifier: Apache-2.0
"""Queries to the owners of servers' resources: Placement, and a compute host's engine."""

import contextlib
from pathlib import Path
from typing import Any

import docker
from openstack.compute.v2.server import Server
from openstack.connection import Connection

from devcloud.settings import Host, Settings


def ask_placement(admin: Connection, path: str) -> dict[str, Any]:
    """Return Placement's response to a GET request."""
    answer = admin.session.get(
        path,
        endpoint_filter={"service_type": "placement"},
        # The oldest microversion with traits.
        headers={"OpenStack-API-Version": "placement 1.6"},
    )
    found: dict[str, Any] = answer.json()
    return found


def provider_of(admin: Connection, host: str) -> str:
    """Return the uuid of a compute host in Placement."""
    (found,) = ask_placement(admin, f"/resource_providers?name={host}")["resource_providers"]
    return str(found["uuid"])


def allocated_from(admin: Connection, server: Server) -> set[str]:
    """Return the uuids of the compute hosts on which a server has allocations."""
    return set(ask_placement(admin, f"/allocations/{server.id}")["allocations"])


def engine_of(settings: Settings, host: Host) -> docker.APIClient:
    """Connect to a host's engine.

    :raises docker.errors.DockerException: the engine does not answer
    """
    return docker.APIClient(f"unix://{settings.engine_socket(host)}", version="auto")


def has_container(cloud: Settings, number: int, server: Server) -> bool:
    """Return True if a host's engine has a server's container."""
    with contextlib.closing(engine_of(cloud, cloud.hosts[number])) as engine:
        return any(
            found["Names"] == [f"/nova-{server.id}"] for found in engine.containers(all=True)
        )


def shell(engine: docker.APIClient, server: Server, script: str) -> str:
    """Run a shell script as root of a server, without the network; return its output."""
    call = engine.exec_create(f"nova-{server.id}", ["sh", "-c", script])["Id"]
    output: bytes = engine.exec_start(call)
    assert engine.exec_inspect(call)["ExitCode"] == 0, output
    return output.decode()


def ids_of(engine: docker.APIClient, server: Server) -> tuple[int, int]:
    """Return the host's ids of root and of the last user of a running server, by the kernel."""
    pid = engine.inspect_container(f"nova-{server.id}")["State"]["Pid"]
    maps = [Path(f"/proc/{pid}/{name}").read_text().split() for name in ("uid_map", "gid_map")]
    assert maps[0] == maps[1]
    inside, first, count = map(int, maps[0])
    assert inside == 0
    return first, first + count - 1
