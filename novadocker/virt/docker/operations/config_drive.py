# SPDX-License-Identifier: Apache-2.0
"""The config drives of the instances of one host, from Nova's flag to files and loop devices."""

from __future__ import annotations

from collections.abc import Sequence

from nova import objects
from nova.network import model as network_model

from novadocker.privsep.guest import config_drive
from novadocker.virt.docker.guest import config_drive as guest_config_drive
from novadocker.virt.docker.model import Mount
from novadocker.virt.docker.operations.services import Node


class ConfigDrives:
    """What an instance without a config drive has of each of these is nothing."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def write(
        self,
        instance: objects.Instance,
        ports: network_model.NetworkInfo,
        injected_files: Sequence[tuple[str, bytes]],
        admin_password: str | None,
    ) -> None:
        """Make the drive's files, and the image of its device where there is one."""
        if guest_config_drive.required(instance):
            files, device = guest_config_drive.build(
                instance, ports, injected_files, admin_password
            )
            config_drive.write_drive(self._node.name, instance.uuid, files, self._root(), device)

    def attach(self, instance: objects.Instance) -> None:
        """Have the drive's device there for a start."""
        if guest_config_drive.wants_device(instance):
            config_drive.attach_device(self._node.name, instance.uuid)

    def detach(self, instance: objects.Instance) -> None:
        """Give the drive's device back; absent is fine."""
        if guest_config_drive.wants_device(instance):
            config_drive.detach_device(self._node.name, instance.uuid)

    def delete(self, instance: objects.Instance) -> None:
        """Remove the drive; absent is fine."""
        if guest_config_drive.required(instance):
            config_drive.delete_drive(self._node.name, instance.uuid)

    def folder(self, instance: objects.Instance) -> str:
        """Return the folder of the drive, empty without one."""
        if not guest_config_drive.required(instance):
            return ""
        return config_drive.folder(self._node.name, instance.uuid)

    def mounts(self, instance: objects.Instance) -> tuple[Mount, ...]:
        """Return how the drive's files are seen in the container."""
        if not guest_config_drive.required(instance):
            return ()
        return guest_config_drive.mounts(config_drive.files_folder(self._node.name, instance.uuid))

    def devices(self, instance: objects.Instance) -> tuple[Mount, ...]:
        """Return how the drive's device is seen in the container."""
        if not guest_config_drive.wants_device(instance):
            return ()
        return (Mount(config_drive.device_link(instance.uuid), guest_config_drive.DEVICE),)

    def _root(self) -> tuple[int, int]:
        """Return the user and group on the host who are root in a server."""
        maps = self._node.id_maps
        return (maps.users[0][1], maps.groups[0][1]) if maps else (0, 0)
