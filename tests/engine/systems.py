# SPDX-License-Identifier: Apache-2.0
"""Servers whose first process is systemd."""

import signal
from collections.abc import Mapping
from types import MappingProxyType

import docker
from oslo_utils import timeutils

from novadocker.virt.docker.containers import lifecycle
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.limits import isolation
from novadocker.virt.docker.model import ContainerSpec, Limits


def read_until(client: docker.APIClient, container: str, text: bytes, since: str) -> None:
    """Read a container's output since a moment until it contains a text."""
    seen = b""
    start = timeutils.parse_isotime(since[:26] + "Z").timestamp()
    lines = client.logs(container, stream=True, follow=True, since=start)
    for part in lines:
        seen += part
        if text in seen:
            lines.close()
            return
    raise AssertionError(seen.decode())


class Server:
    """A container whose first process is systemd, as the driver creates it."""

    def __init__(
        self,
        engine: Engine,
        client: docker.APIClient,
        image: str,
        instance_uuid: str,
        limits: Limits,
        extra_specs: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.engine = engine
        self.client = client
        self.instance_uuid = instance_uuid
        self.id = engine.create_container(
            ContainerSpec(
                name=f"nova-{instance_uuid}",
                image_id=image,
                hostname="sd1",
                labels={},
                runtime="novadocker",
                limits=limits,
                isolation=isolation.isolation(extra_specs),
                console_log_max_mb=1,
                entrypoint=("/sbin/init",),
                stop_signal="SIGRTMIN+3",
                systemd=True,
            )
        )

    def start(self) -> None:
        with lifecycle.started(self.engine, self.id, 0.1):
            pass

    def run(self, *command: str) -> str:
        call = self.client.exec_create(self.id, list(command))["Id"]
        output: bytes = self.client.exec_start(call)
        return output.decode()

    def state(self) -> str:
        """Return systemd's state when the boot has succeeded or failed."""
        since = self.client.inspect_container(self.id)["State"]["StartedAt"]
        read_until(self.client, self.id, b"sd1 console", since)
        return self.run("timeout", "300", "systemctl", "is-system-running", "--wait").strip()

    def stop(self, end: str = "halt") -> None:
        """Stop the server as Nova does, or by ``systemctl`` inside, and check the exit status."""
        if end == "halt":
            lifecycle.stop(self.engine, self.id, 30)
        else:
            call = self.client.exec_create(self.id, ["systemctl", end])["Id"]
            self.client.exec_start(call, detach=True)
        reason = signal.SIGHUP if end == "reboot" else signal.SIGINT
        assert self.engine.wait_container(self.id, 30) == 128 + reason
