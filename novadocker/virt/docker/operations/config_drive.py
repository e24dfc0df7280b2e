# SPDX-License-Identifier: Apache-2.0
"""The config drives of the instances of one host, from Nova's flag to files and loop devices."""

from __future__ import annotations

from collections.abc import Sequence

from nova import objects
from nova.network import model as network_model

from novadocker.virt.docker.guest import config_drive
from novadocker.virt.docker.model import Mount
from novadocker.virt.docker.operations.services import Services


class ConfigDrive:
    """The steps for config drives. They do nothing for an instance without a config drive."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._drives = services.drives

    def write(
        self,
        instance: objects.Instance,
        ports: network_model.NetworkInfo,
        injected_files: Sequence[tuple[str, bytes]],
        admin_password: str | None,
    ) -> None:
        """Write the files of the config drive, and the image of its device if it has one."""
        if config_drive.required(instance):
            files, device = self._services.build_config_drive(
                instance, ports, injected_files, admin_password
            )
            name = self._services.name
            self._drives.write_drive(name, instance.uuid, files, self._root(), device)

    def attach(self, instance: objects.Instance) -> None:
        """Attach the device of the config drive before a start. Idempotent."""
        if config_drive.wants_device(instance):
            self._drives.attach_device(self._services.name, instance.uuid)

    def detach(self, instance: objects.Instance) -> None:
        """Detach the device of the config drive. Does nothing if it is not attached."""
        if config_drive.wants_device(instance):
            self._drives.detach_device(self._services.name, instance.uuid)

    def delete(self, instance: objects.Instance) -> None:
        """Delete the config drive. Does nothing if it does not exist."""
        if config_drive.required(instance):
            self._drives.delete_drive(self._services.name, instance.uuid)

    def directory(self, instance: objects.Instance) -> str:
        """Return the directory of the config drive; empty without a config drive."""
        if not config_drive.required(instance):
            return ""
        return self._drives.folder(self._services.name, instance.uuid)

    def mounts(self, instance: objects.Instance) -> tuple[Mount, ...]:
        """Return the mounts of the config drive's files in the container."""
        if not config_drive.required(instance):
            return ()
        return config_drive.mounts(self._drives.files_folder(self._services.name, instance.uuid))

    def devices(self, instance: objects.Instance) -> tuple[Mount, ...]:
        """Return the mounts of the config drive's device in the container."""
        if not config_drive.wants_device(instance):
            return ()
        return (Mount(self._drives.device_link(instance.uuid), config_drive.DEVICE),)

    def _root(self) -> tuple[int, int]:
        """Return the user and the group on the host that are root in a server."""
        maps = self._services.id_maps
        return (maps.users[0][1], maps.groups[0][1]) if maps else (0, 0)
