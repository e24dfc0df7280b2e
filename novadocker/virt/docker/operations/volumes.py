# SPDX-License-Identifier: Apache-2.0
"""The volumes of instances: connected to this host, and given to their containers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from nova import exception as nova_exception
from nova import objects
from oslo_log import log as logging

from novadocker import exception, naming, privsep
from novadocker.conf import CONF
from novadocker.virt.docker.containers import servers
from novadocker.virt.docker.model import ContainerDetail
from novadocker.virt.docker.operations.services import Services
from novadocker.virt.docker.volumes import volume as volumes
from novadocker.virt.docker.volumes.volume import Volume

BlockDevices = Mapping[str, Any] | None
"""The block devices of an instance as Nova passes them to drivers (``block_device_info``)."""

LOG = logging.getLogger(__name__)


class Volumes:
    """Connects and disconnects the volumes of the instances of one host.

    A volume is connected from the build or the first start on this host until the instance leaves
    the host, also while the instance is stopped.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._connector = services.volume_connector
        self._devices = services.volume_devices

    def connector_properties(self) -> dict[str, Any]:
        """Return what Cinder needs to know of this host."""
        return self._connector.connector_properties(self._services.name)

    def connect(self, instance: objects.Instance, block_devices: BlockDevices) -> None:
        """Connect all volumes of an instance, and give them to its container. Idempotent.

        If one volume fails, disconnects those that the instance did not have before and does not
        use yet. Nova's mappings save what os-brick needs to disconnect the volumes.

        :raises VolumeAttachFailed: the driver cannot attach a volume
        """
        found = volumes.from_block_devices(block_devices)
        with contextlib.ExitStack() as undo:
            for volume, mapping in zip(found, volumes.mappings(block_devices), strict=True):
                if self._connect(undo, instance, volume, mapping["connection_info"]):
                    mapping.save()
            undo.pop_all()

    def attach(
        self, instance: objects.Instance, connection_info: dict[str, Any], path: str
    ) -> None:
        """Connect one volume and give it to the instance's container, which may run.

        :raises VolumeAttachFailed: the driver cannot attach the volume; it is disconnected
        """
        volume = volumes.from_connection(connection_info, path)
        with contextlib.ExitStack() as undo:
            self._connect(undo, instance, volume, connection_info)
            undo.pop_all()

    def detach(
        self, instance: objects.Instance, connection_info: Mapping[str, Any], path: str
    ) -> None:
        """Take one volume from the instance's container and disconnect it. Idempotent.

        :raises DeviceDetachFailed: a process of the instance has the device open
        """
        self._part_with(instance, volumes.from_connection(connection_info, path))

    def extend(self, connection_info: Mapping[str, Any], size: int) -> None:
        """Make the host and the instance see the new size of a volume.

        :param size: the requested size in bytes
        :raises VolumeAttachFailed: the device is smaller
        """
        volume = volumes.from_connection(connection_info, volumes.ROOT_DEVICE)
        found = self._connector.extend(volume)
        if found < size:
            raise exception.VolumeFailed(
                volume_id=volume.id,
                reason=f"its device has {found} bytes after the extension to {size}",
            )

    def disconnect(self, instance: objects.Instance, block_devices: BlockDevices) -> None:
        """Disconnect all volumes of an instance. Idempotent. Tries each volume.

        :raises DeviceDetachFailed: a process of the instance has a device open
        :raises VolumeAttachFailed: a volume cannot be disconnected
        """
        with contextlib.ExitStack() as each:
            for volume in _readable(instance, block_devices):
                each.callback(self._part_with, instance, volume)

    def give_up(self, instance: objects.Instance, block_devices: BlockDevices) -> None:
        """Disconnect all volumes of an instance whose container is gone for good. Idempotent.

        A volume that cannot be disconnected does not keep Nova from the deletion of the instance.
        """
        for volume in _readable(instance, block_devices):
            try:
                self._part_with(instance, volume)
            except nova_exception.NovaException as error:
                LOG.warning(
                    "Failed to disconnect volume %s: %s", volume.id, error, instance=instance
                )

    def part_with_remote(self, instance: objects.Instance, block_devices: BlockDevices) -> None:
        """Take the volumes from an instance whose connection ends with Nova's attachment.

        Nova deletes the attachments of an instance while it resizes the instance and makes new
        ones. If one volume is in use, returns the others to the instance.

        :raises DeviceDetachFailed: a process of the instance has a device open
        """
        remote = [volume for volume in _readable(instance, block_devices) if not volume.is_local]
        with contextlib.ExitStack() as undo:
            for volume in remote:
                self._take(instance, volume)
                undo.callback(self._give, instance, volume)
            undo.pop_all()
        for volume in remote:
            self._disconnect(instance, volume)

    def _withdraw(self, instance: objects.Instance, volume: Volume) -> None:
        """Disconnect a volume, unless the instance uses it already."""
        try:
            self._part_with(instance, volume)
        except nova_exception.DeviceDetachFailed as error:
            LOG.warning(
                "Volume %s stays connected after a failure: %s", volume.id, error, instance=instance
            )

    def _connect(
        self,
        undo: contextlib.ExitStack,
        instance: objects.Instance,
        volume: Volume,
        connection_info: Mapping[str, Any],
    ) -> bool:
        """Connect a volume and give it to the instance; return True if the connection changed.

        :param undo: gets the disconnection, unless the instance had the volume before
        """
        held = self._devices.holds(instance.uuid, volume.id)
        volumes.check_mode(volume, CONF.docker.volume_modes)
        if not held:
            undo.callback(self._withdraw, instance, volume)
        if self._services.id_maps is not None:
            raise exception.VolumeRefused(
                volume_id=volume.id,
                reason="the Docker Engine of the host remaps users (userns-remap)",
            )
        found = str(self._connector.connect(volume)["path"])
        # os-brick reads the path when it disconnects the volume. Cinder gives that of a local
        # volume.
        changed = not volume.is_local and connection_info["data"].get("device_path") != found
        if changed:
            connection_info["data"]["device_path"] = found
        device = {
            "volume_id": volume.id,
            "path": volume.path,
            "source": _device(found),
            "writable": volume.writable,
            "shared": volume.shared,
            "root": volume.root,
            "rates": asdict(volume.rates),
        }
        try:
            self._devices.hold(instance.uuid, device)
            self._give(instance, volume)
        except (OSError, ValueError, *privsep.UNANSWERED) as error:
            raise exception.VolumeFailed(volume_id=volume.id, reason=str(error)) from error
        level = logging.DEBUG if held else logging.INFO
        LOG.log(level, "Attached volume %s at %s", volume.id, volume.path, instance=instance)
        return changed

    def _part_with(self, instance: objects.Instance, volume: Volume) -> None:
        self._take(instance, volume)
        self._disconnect(instance, volume)

    def _disconnect(self, instance: objects.Instance, volume: Volume) -> None:
        try:
            last = self._devices.release(instance.uuid, volume.id)
        except (OSError, *privsep.UNANSWERED) as error:
            raise exception.VolumeFailed(volume_id=volume.id, reason=str(error)) from error
        if last:
            self._connector.disconnect(volume)

    def _give(self, instance: objects.Instance, volume: Volume) -> None:
        if volume.root:
            # The start of the container mounts it.
            return
        found = self._running(instance)
        if found is not None:
            self._devices.give(instance.uuid, volume.id, found.id, found.pid)

    def _take(self, instance: objects.Instance, volume: Volume) -> None:
        found = self._running(instance)
        if found is None:
            return
        try:
            user = self._devices.take(instance.uuid, volume.id, found.id, found.pid)
        except (OSError, *privsep.UNANSWERED) as error:
            if self._running(instance) is None:
                return
            raise nova_exception.DeviceDetachFailed(
                device=volume.path, reason=str(error)
            ) from error
        if user:
            raise nova_exception.DeviceDetachFailed(
                device=volume.path, reason=f"it is in use in the server by {user}"
            )

    def _running(self, instance: objects.Instance) -> ContainerDetail | None:
        """Return the instance's container if it has processes."""
        try:
            found = self._services.engine.inspect_container(naming.container_name(instance.uuid))
        except exception.ContainerNotFound:
            return None
        return None if servers.has_ended(found) or not found.pid else found


def _device(path: str) -> str:
    """Return the path of a device below /dev; a link elsewhere may lead to it."""
    return path if path.startswith("/dev/") else os.path.realpath(path)


def _readable(instance: objects.Instance, block_devices: BlockDevices) -> list[Volume]:
    """Return the volumes that can be disconnected; the others were never connected."""
    found = []
    for mapping in volumes.mappings(block_devices):
        try:
            found.append(volumes.from_mapping(mapping))
        except exception.VolumeRefused as error:
            LOG.info("Nothing to disconnect: %s", error, instance=instance)
    return found
