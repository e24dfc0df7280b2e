# SPDX-License-Identifier: Apache-2.0
"""From nothing to an instance, and back."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nova import context as nova_context
from nova import objects
from nova.network import model as network_model
from nova.virt import driver

from novadocker import exception, naming
from novadocker.conf import CONF
from novadocker.privsep.guest import runtime
from novadocker.state_files import port_rates
from novadocker.virt.docker.containers import rescue
from novadocker.virt.docker.guest import identity
from novadocker.virt.docker.limits import flavor as flavor_limits
from novadocker.virt.docker.limits import isolation
from novadocker.virt.docker.migration import transfer
from novadocker.virt.docker.model import ContainerSpec, EngineImage
from novadocker.virt.docker.network import device_names, device_tags, vif
from novadocker.virt.docker.operations import spec
from novadocker.virt.docker.operations.config_drive import ConfigDrives
from novadocker.virt.docker.operations.ports import Ports, etc_files
from novadocker.virt.docker.operations.power import Power
from novadocker.virt.docker.operations.services import Node


class Builds:
    """Makes and removes the instances of one host."""

    def __init__(self, node: Node, ports: Ports, power: Power, config_drives: ConfigDrives) -> None:
        self._node = node
        self._ports = ports
        self._power = power
        self._drives = config_drives

    def spawn(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_meta: objects.ImageMeta,
        injected_files: Sequence[tuple[str, bytes]],
        admin_password: str | None,
        network_info: network_model.NetworkInfo | None,
        power_on: bool,
    ) -> None:
        """Wire the instance, create its container while Neutron works, then start it.

        The image comes before the first look at ``network_info``, which waits until Neutron has
        allocated the ports.

        :raises ImageUnacceptable: the image can't be booted on any host
        :raises BuildAbortException: its command does not run, or Neutron reports no port up
        """
        container = self.planned(context, instance, image_meta)
        login = identity.login(instance, image_meta, admin_password)
        ports = network_info if network_info is not None else network_model.NetworkInfo()
        vif.check_supported(ports)
        # Nova saves the instance when it runs
        device_names.record_names(instance, ports)
        with contextlib.ExitStack() as undo:
            undo.callback(self._ports.unwire, instance, ports)
            with self._ports.plugged(instance, ports):
                instance.device_metadata = device_tags.device_metadata(context, instance, ports)
                undo.callback(self._drives.delete, instance)
                undo.callback(self._drives.detach, instance)
                self._drives.write(instance, ports, injected_files, admin_password)
                container_id = self._create_of(context, image_meta, container)
                undo.callback(self._node.abandoned.remove, container_id)
                if injected_files:
                    self._node.engine.put_files(container_id, dict(injected_files))
                runtime.bind_container(
                    container_id,
                    instance.uuid,
                    etc_files=etc_files(instance, ports),
                    login=login and asdict(login),
                )
            if power_on:
                self._power.start_first(instance, container_id, ports)
            undo.pop_all()

    def planned(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_meta: objects.ImageMeta,
    ) -> ContainerSpec:
        """Have an image in the engine; return what an instance's container of it must be.

        :raises InvalidLimits: this host can't keep the instance's limits
        :raises ImageUnacceptable: the image can't be booted, or not within the limits
        """
        asked = self._node.lxcfs.look()
        most = flavor_limits.instance_limits(instance, self._node.rules())
        self._node.enforcement.check_possible(most)
        image = self._node.images.ensure(context, image_meta)
        flavor_limits.check_image_fits(image.size_bytes, most)
        return self.container_spec(instance, image_meta, image, asked)

    def container_spec(
        self,
        instance: objects.Instance,
        image_meta: objects.ImageMeta,
        image: EngineImage,
        asked: float,
    ) -> ContainerSpec:
        """Return what an instance's container must be.

        :param asked: what ``Lxcfs.look`` returned
        """
        rules = self._node.rules()
        return spec.container_spec(
            instance,
            image_meta,
            image,
            flavor_limits.instance_limits(instance, rules),
            isolation.isolation(flavor_limits.asked(instance, instance.flavor, rules)),
            runtime=CONF.docker.runtime,
            console_log_max_mb=CONF.docker.console_log_max_mb,
            mounts=self._drives.mounts(instance) + self._node.lxcfs.mounts(instance.uuid, asked),
            devices=self._drives.devices(instance),
        )

    def remove(
        self,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
    ) -> None:
        """Remove the instance's container and all it has on this host; absent is fine."""
        self._node.consoles.close(instance.uuid)
        self.remove_containers(instance)
        self._ports.unwire(instance, network_info)
        self.clean(instance, destroy_disks=True)

    def remove_containers(self, instance: objects.Instance) -> None:
        """Remove the instance's container, here or away, and its rescue's; absent is fine."""
        name = naming.container_name(instance.uuid)
        for own in (name, name + naming.AWAY):
            self._node.engine.remove_container(own)
        rescue.remove(self._node.engine, instance.uuid)

    def hide(self, instance: objects.Instance) -> None:
        """Give the instance's container a name under which it is no server; absent is fine."""
        name = naming.container_name(instance.uuid)
        with contextlib.suppress(exception.ContainerNotFound):
            self._node.engine.rename_container(name, name + naming.AWAY)

    def unhide(self, instance: objects.Instance) -> None:
        """Undo ``hide``; an instance that was not hidden is left alone."""
        name = naming.container_name(instance.uuid)
        with contextlib.suppress(exception.ContainerNotFound):
            self._node.engine.rename_container(name + naming.AWAY, name)

    def clean(self, instance: objects.Instance, destroy_disks: bool) -> None:
        """Remove what an instance without container and network leaves; absent is fine."""
        self._drives.detach(instance)
        self._node.loads.delete(instance.uuid)
        port_rates.forget(Path(CONF.state_path), instance.uuid)
        if self._node.arrivals.get(instance.uuid):
            transfer.discard(self._node.data_root, instance.uuid)
            self._node.arrivals.end(instance.uuid)
        if destroy_disks:
            self._drives.delete(instance)

    def _create_of(
        self,
        context: nova_context.RequestContext,
        image_meta: objects.ImageMeta,
        container: ContainerSpec,
    ) -> str:
        try:
            return self._create(container)
        except exception.EngineImageNotFound:
            # aged out of the cache since it was looked up
            image = self._node.images.ensure(context, image_meta)
            return self._create(replace(container, image_id=image.id))

    def _create(self, container: ContainerSpec) -> str:
        self._node.abandoned.sweep()
        try:
            return self._node.engine.create_container(container)
        except exception.EngineUnavailable:
            self._node.abandoned.suspect(container.name)
            raise


def refuse_disks(instance: objects.Instance, block_device_info: dict[str, Any] | None) -> None:
    """Refuse what would be left out silently.

    :raises StartFailed: there are volumes or an ephemeral disk
    """
    asked = {
        "volumes": driver.block_device_info_get_mapping(block_device_info),
        "an ephemeral disk": instance.flavor.ephemeral_gb,
    }
    for thing, wanted in asked.items():
        if wanted:
            raise exception.StartFailed(
                instance_uuid=instance.uuid, reason=f"the Docker driver does not provide {thing}"
            )
