# SPDX-License-Identifier: Apache-2.0
"""Servers through the API: their hosts, and the seconds from the request to ACTIVE."""

import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from openstack.connection import Connection

from devcloud.steps import StepFailed, wait_until

# A request for one server takes the cloud longer than this; see docs/benchmarks.rst.
_POLL_SECONDS = 0.08
_BUILD_SECONDS = 60
_SLOW_SECONDS = 8

_WAITED = re.compile(r"\[instance: ([0-9a-f-]{36})\] Waited ([0-9.]+) s for Neutron's ports")


class Servers:
    """Boots and deletes one server at a time.

    :param logs: the logs of every nova-compute whose driver logs its wait for Neutron
    """

    def __init__(self, connection: Connection, image_id: str, logs: Sequence[Path]) -> None:
        self._compute = connection.compute
        self._logs = tuple(logs)
        self._name = f"benchmark-{secrets.token_hex(4)}"
        self._attributes = {
            "image_id": image_id,
            "flavor_id": self._compute.find_flavor("d1.tiny", ignore_missing=False).id,
            "networks": [
                {"uuid": connection.network.find_network("private", ignore_missing=False).id}
            ],
        }

    def boot(self, zone: str) -> tuple[float, float]:
        """Boot a server in an availability zone, and delete it.

        :returns: seconds from the request to ACTIVE, and the driver's part of them in waiting for
            Neutron's event
        """
        begin_of_logs = {log: log.stat().st_size for log in self._logs}
        begin = time.perf_counter()
        try:
            server = self._compute.create_server(
                name=self._name, availability_zone=zone, **self._attributes
            )
            self._wait(lambda: self._built(server.id, begin), "a server ACTIVE")
            seconds = time.perf_counter() - begin
        finally:
            self._delete()
        return seconds, self._waited(server.id, begin_of_logs)

    def _delete(self) -> None:
        # An interrupted request may have created a server whose id was not received, so select by
        # name.
        for server_id in self._listed(None):
            self._compute.delete_server(server_id)
        self._wait(lambda: not self._listed(None), "a server deleted")

    def _built(self, server_id: str, begin: float) -> bool:
        if self._listed("ACTIVE"):
            return True
        # Each request slows the cloud down, so look for errors only when a boot is slow.
        if time.perf_counter() - begin > _SLOW_SECONDS and self._listed("ERROR"):
            fault = self._compute.get_server(server_id).fault or {}
            raise StepFailed(
                f"A server failed: {fault.get('message')}", f"less {self._logs[0]}", self._logs[0]
            )
        return False

    def _listed(self, status: str | None) -> list[str]:
        query = {"name": self._name} | ({"status": status} if status else {})
        return [server.id for server in self._compute.servers(details=False, **query)]

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(
            condition,
            what=what,
            advice="openstack server show, with admin-openrc",
            log=self._logs[0],
            timeout=_BUILD_SECONDS,
            interval=_POLL_SECONDS,
        )

    @staticmethod
    def _waited(server_id: str, begin_of_logs: Mapping[Path, int]) -> float:
        for log, begin in begin_of_logs.items():
            with log.open(errors="replace") as lines:
                lines.seek(begin)
                for found in _WAITED.finditer(lines.read()):
                    if found[1] == server_id:
                        return float(found[2])
        return 0.0
