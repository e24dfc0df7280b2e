# SPDX-License-Identifier: Apache-2.0
"""Cinder's volumes of a test, and commands inside the servers that have them."""

import contextlib
import time
from typing import Any

from openstack.compute.v2.server import Server
from openstack.connection import Connection

from devcloud.settings import Settings
from tests.cloud.owners import engine_of
from tests.cloud.servers import host_of

VOLUME_SECONDS = 90


class Volumes:
    """Creates volumes for one test, attaches them and deletes them after it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.made: list[str] = []

    def create(self, size: int = 1, **attributes: Any) -> Any:
        """Create a volume of some GiB and wait until it is available."""
        storage = self.connection.block_storage
        made = storage.create_volume(name="test", size=size, **attributes)
        self.made.append(made.id)
        return self.wait(made, "available")

    def wait(self, volume: Any, *statuses: str) -> Any:
        """Wait until a volume has one of the statuses, and return the volume."""
        deadline = time.monotonic() + VOLUME_SECONDS
        while (now := self.connection.block_storage.get_volume(volume.id)).status not in statuses:
            assert "error" not in now.status, now.status
            assert time.monotonic() < deadline, now.status
            time.sleep(0.3)
        return now

    def attach(self, server: Server, volume: Any, **attributes: Any) -> str:
        """Attach a volume and return its device's path in the server."""
        compute = self.connection.compute
        compute.create_volume_attachment(server, volume_id=volume.id, **attributes)
        self.wait(volume, "in-use")
        deadline = time.monotonic() + VOLUME_SECONDS
        while True:
            (found,) = [
                attachment
                for attachment in compute.volume_attachments(server)
                if attachment.volume_id == volume.id
            ]
            if found.device:
                return str(found.device)
            assert time.monotonic() < deadline
            time.sleep(0.3)

    def detach(self, server: Server, volume: Any, *statuses: str) -> None:
        """Detach a volume and wait until it is available, or has one of the statuses."""
        self.connection.compute.delete_volume_attachment(server, volume.id)
        self.wait(volume, *(statuses or ("available",)))

    def delete_all(self) -> None:
        """Delete all volumes and wait until they are deleted."""
        storage = self.connection.block_storage
        for volume in self.made:
            # A detached volume is available only after the deletion of its server.
            found = storage.find_volume(volume)
            if found is not None:
                self.wait(found, "available")
                storage.delete_volume(volume)
        deadline = time.monotonic() + VOLUME_SECONDS
        while left := {found.id for found in storage.volumes(details=False)} & set(self.made):
            assert time.monotonic() < deadline, left
            time.sleep(0.3)
        self.made.clear()


class Inside:
    """Runs commands as root in the container of a server, on whatever host it is."""

    def __init__(self, cloud: Settings, admin: Connection, server: Server) -> None:
        self.cloud, self.admin, self.server = cloud, admin, server

    def run(self, command: str) -> tuple[int, str]:
        """Return the exit status and the output of a shell command."""
        name = host_of(self.admin, self.server)
        (host,) = [host for host in self.cloud.hosts if host.name == name]
        with contextlib.closing(engine_of(self.cloud, host)) as engine:
            call = engine.exec_create(f"nova-{self.server.id}", ["sh", "-c", command])["Id"]
            output: bytes = engine.exec_start(call)
            return engine.exec_inspect(call)["ExitCode"], output.decode()

    def ask(self, command: str) -> str:
        """Return the output of a command, which must succeed."""
        status, output = self.run(command)
        assert status == 0, output
        return output

    def write(self, device: str, text: str) -> None:
        """Write a text to the begin and to the end of a device, through the cache."""
        self.ask(
            f"echo {text} | dd of={device} bs=512 conv=notrunc,fsync,sync 2>/dev/null;"
            f" echo {text} | dd of={device} bs=1M seek=1000 conv=notrunc,fsync,sync 2>/dev/null"
        )

    def read(self, device: str) -> str:
        """Return the text of ``write``."""
        texts = self.ask(
            f"dd if={device} bs=512 count=1 2>/dev/null | tr -d '\\0';"
            f" dd if={device} bs=1M skip=1000 count=1 2>/dev/null | tr -d '\\0'"
        ).split()
        assert len(set(texts)) < 2, texts
        return texts[0] if texts else ""

    def size(self, device: str) -> int:
        """Return the size of a device in bytes."""
        return int(self.ask(f"blockdev --getsize64 {device}"))


def by_id(volume: Any) -> str:
    """Return the path by which images look for a volume of KVM."""
    return f"/dev/disk/by-id/virtio-{volume.id[:20]}"
