# SPDX-License-Identifier: Apache-2.0
"""Servers of a test, through the public API only."""

import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from openstack.compute.v2.server import Server
from openstack.connection import Connection

from devcloud.network import inside

BUILD_SECONDS = 180

Opened = Callable[..., AbstractContextManager[None]]
"""The type of the fixture ``opened``."""


class Servers:
    """Creates servers for one test and deletes them after it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.made: list[str] = []

    def create(self, name: str = "test", wait: bool = True, **attributes: Any) -> Server:
        """Create a server, by default a small one on the network ``private``.

        :returns: the server; its status is ACTIVE or ERROR if ``wait`` is set
        """
        compute = self.connection.compute
        image = attributes.pop("image", "busybox")
        flavor = attributes.pop("flavor", "d1.tiny")
        if "networks" not in attributes:
            network = self.connection.network.find_network("private").id
            attributes["networks"] = [{"uuid": network}]
        server = compute.create_server(
            name=name,
            image_id=self.connection.image.find_image(image, ignore_missing=False).id,
            flavor_id=compute.find_flavor(flavor, ignore_missing=False).id,
            **attributes,
        )
        self.made.append(server.id)
        return self.settle(server) if wait else server

    def settle(self, server: Server) -> Server:
        """Wait until a server's build has succeeded or failed."""
        return self.wait(server, lambda now: now.status in ("ACTIVE", "ERROR"))

    def wait(
        self,
        server: Server,
        reached: Callable[[Server], bool],
        timeout: float = BUILD_SECONDS,
    ) -> Server:
        """Poll a server until the condition is true and the server has no task."""
        deadline = time.monotonic() + timeout
        while True:
            now = self.connection.compute.get_server(server.id)
            if reached(now) and now.task_state is None:
                return now
            assert time.monotonic() < deadline, f"{now.name}: {now.status} {now.task_state}"
            time.sleep(0.3)

    def delete_all(self) -> None:
        """Delete all servers and wait until they are deleted."""
        self._delete(self.made)
        self.made.clear()

    def delete(self, server: Server) -> None:
        """Delete one server and wait until it is deleted."""
        self._delete([server.id])
        self.made.remove(server.id)

    def _delete(self, servers: Sequence[str]) -> None:
        compute = self.connection.compute
        for server in servers:
            compute.delete_server(server, ignore_missing=True)
        deadline = time.monotonic() + BUILD_SECONDS
        while left := {found.id for found in compute.servers(details=False)} & set(servers):
            assert time.monotonic() < deadline, f"not deleted within {BUILD_SECONDS} s: {left}"
            time.sleep(0.3)


def address(server: Server, version: int = 4) -> str:
    """Return a server's first address of an IP version."""
    return next(
        str(entry["addr"])
        for entries in server.addresses.values()
        for entry in entries
        if entry["version"] == version
    )


def fault(server: Server) -> str:
    """Return the text of a server's fault for its user."""
    return str((server.fault or {}).get("message", ""))


def pings(namespace: str, target: str) -> bool:
    """Return True if an address answers to a ping from a namespace within ten seconds."""
    done = subprocess.run(
        inside(namespace, ["ping", "-n", "-c", "1", "-w", "10", target]),
        capture_output=True,
        check=False,
        timeout=30,
    )
    return done.returncode == 0


def host_of(admin: Connection, server: Server) -> str:
    """Return the name of a server's host."""
    return str(admin.compute.get_server(server.id).hypervisor_hostname)


def migrations(admin: Connection, server: Server) -> list[str]:
    """Return the statuses of a server's migrations, the newest first."""
    found = admin.compute.get(
        f"/os-migrations?instance_uuid={server.id}",
        headers={"OpenStack-API-Version": "compute 2.80"},
    )
    return [migration["status"] for migration in found.json()["migrations"]]


def last_events(admin: Connection, server: Server) -> list[dict[str, Any]]:
    """Return the events of a server's last action."""
    path, headers = (
        f"/servers/{server.id}/os-instance-actions",
        {"OpenStack-API-Version": "compute 2.84"},
    )
    last = admin.compute.get(path, headers=headers).json()["instanceActions"][0]
    shown = admin.compute.get(f"{path}/{last['request_id']}", headers=headers).json()
    found: list[dict[str, Any]] = shown["instanceAction"]["events"]
    return found
