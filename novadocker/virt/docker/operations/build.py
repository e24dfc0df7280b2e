# SPDX-License-Identifier: Apache-2.0
"""The build of an instance, and its deletion from this host."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from glanceclient import exc as glance_errors
from keystoneauth1 import exceptions as keystone_errors
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.compute import task_states
from nova.network import model as network_model
from oslo_log import log as logging
from oslo_utils import units

from novadocker import exception, naming, privsep
from novadocker.conf import CONF
from novadocker.state_files import port_rates
from novadocker.virt.docker.containers import rescue
from novadocker.virt.docker.guest import environment, identity
from novadocker.virt.docker.images import empty
from novadocker.virt.docker.limits import flavor as flavor_limits
from novadocker.virt.docker.limits import isolation
from novadocker.virt.docker.migration import nova_records
from novadocker.virt.docker.model import ContainerSpec, EngineImage
from novadocker.virt.docker.network import device_names
from novadocker.virt.docker.operations import spec
from novadocker.virt.docker.operations.config_drive import ConfigDrive
from novadocker.virt.docker.operations.ports import Ports, etc_files
from novadocker.virt.docker.operations.power import Power
from novadocker.virt.docker.operations.root_volume import RootVolumes
from novadocker.virt.docker.operations.services import Services
from novadocker.virt.docker.operations.volumes import BlockDevices, Volumes
from novadocker.virt.docker.volumes.root import Source, check_fits
from novadocker.virt.docker.volumes.volume import root_of

LOG = logging.getLogger(__name__)

_NO_RECORD = (
    nova_exception.NovaException,
    keystone_errors.ClientException,
    glance_errors.ClientException,
)


class Build:
    """Builds and deletes the instances of one host."""

    def __init__(
        self,
        services: Services,
        ports: Ports,
        power: Power,
        config_drive: ConfigDrive,
        volumes: Volumes,
    ) -> None:
        self._services = services
        self._ports = ports
        self._power = power
        self._config_drive = config_drive
        self._volumes = volumes
        self._roots = RootVolumes(services)

    def prepare(self, instance: objects.Instance) -> None:
        """Load the image of an instance into the engine, and judge both before ``spawn``.

        Nova's manager aborts a build here without a traceback. Does nothing for an instance that
        boots from a volume, or if Glance does not answer: ``spawn`` has the manager's record of the
        image, and the engine may have the image.

        :raises UnexpectedDeletingTaskStateError: the user deleted the instance meanwhile
        :raises ImageUnacceptable: no host can boot the image
        :raises NovaException: see ``planned``
        """
        if not instance.image_ref:
            return
        # A request context, with which the manager called nova-compute.
        context = instance._context
        try:
            image_meta = self._services.images.describe(context, instance.image_ref)
        except _NO_RECORD as error:
            LOG.warning(
                "Failed to read the record of image %s: %s",
                instance.image_ref,
                error,
                instance=instance,
            )
            return
        self._judged(context, instance, image_meta)
        identity.login(instance, image_meta, None)
        identity.admin_user(image_meta)
        # The manager does not look at the state in which the user's deletion has left the instance,
        # and would build it to the end after a download of minutes.
        now = self._services.read_instance(context, instance.uuid)
        if now.task_state == task_states.DELETING:
            raise nova_exception.UnexpectedDeletingTaskStateError(
                instance_uuid=instance.uuid,
                expected={"task_state": instance.task_state},
                actual={"task_state": now.task_state},
            )

    def _judged(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_meta: objects.ImageMeta,
        source: Source | None = None,
    ) -> ContainerSpec:
        """Return the specification of the container to create. Raises as ``planned``.

        :param source: how the volume becomes the root directory, if the instance boots from one
        :raises RequestRefused: the server's metadata has an invalid environment variable
        """
        environment.check(
            instance, image_meta.id, from_metadata=CONF.docker.environment_from_metadata
        )
        return self.planned(context, instance, image_meta, source)

    def spawn(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_meta: objects.ImageMeta,
        injected_files: Sequence[tuple[str, bytes]],
        admin_password: str | None,
        network_info: network_model.NetworkInfo | None,
        block_devices: BlockDevices,
        power_on: bool,
    ) -> None:
        """Wire the instance, create its container while Neutron wires the ports, then start it.

        The image is loaded before the first use of ``network_info``, because that use waits until
        Neutron has allocated the ports.

        :raises ImageUnacceptable: no host can boot the image
        :raises BuildAbortException: the command does not run, or Neutron sends no event for a port
        """
        volume = root_of(block_devices)
        source = None
        with contextlib.ExitStack() as undo:
            if volume is not None:
                if injected_files:
                    raise exception.RequestRefused(
                        instance_uuid=instance.uuid,
                        reason="A server that boots from a volume gets no personality files",
                    )
                # What is on the volume decides which image the container has.
                undo.callback(self._volumes.disconnect, instance, block_devices)
                self._volumes.connect(instance, block_devices)
                source = self._roots.examine(context, instance, image_meta, volume)
                image_meta = source.image or objects.ImageMeta(
                    id=empty.ID, properties=image_meta.properties
                )
            container = self._judged(context, instance, image_meta, source)
            login = identity.login(instance, image_meta, admin_password)
            ports = network_info if network_info is not None else network_model.NetworkInfo()
            self._services.network.check_supported(ports)
            # Nova saves the instance when it runs.
            device_names.record_names(instance, ports)
            if volume is None:
                undo.callback(self._volumes.disconnect, instance, block_devices)
                self._volumes.connect(instance, block_devices)
            undo.callback(self._ports.unwire, instance, ports)
            with self._ports.plugged(instance, ports):
                instance.device_metadata = self._services.device_metadata(context, instance, ports)
                undo.callback(self._config_drive.delete, instance)
                self._config_drive.write(instance, ports, injected_files, admin_password)
                container_id = self._create_of(context, instance, image_meta, container, source)
                # The container may run until the engine answers again. Until then the number of
                # its device must not become another server's.
                detach = functools.partial(self._config_drive.detach, instance)
                undo.callback(self._services.abandoned.remove, container_id, detach)
                if volume is not None and source is not None and source.fills:
                    self._roots.fill(instance, volume, image_meta, container_id)
                if injected_files:
                    self._services.engine.put_files(container_id, dict(injected_files))
            self._services.runtime.bind_container(
                container_id,
                instance.uuid,
                etc_files=etc_files(instance, ports),
                login=asdict(login) if login else None,
            )
            self._services.network.complete_routes(instance, ports)
            if power_on:
                self._power.start_first(instance, container_id, ports)
            undo.pop_all()

    def planned(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_meta: objects.ImageMeta,
        source: Source | None = None,
    ) -> ContainerSpec:
        """Load an image into the engine; return the specification of an instance's container.

        :param source: as for ``_judged``
        :raises InvalidLimits: this host cannot enforce the instance's limits
        :raises ImageUnacceptable: the image cannot be booted, or exceeds the limits
        """
        asked = self._services.lxcfs.look()
        most = flavor_limits.instance_limits(instance, self._services.rules(instance))
        self._services.enforcement.check_possible(most)
        image = self._image(context, instance, image_meta, source)
        flavor_limits.check_image_fits(image.size_bytes, most)
        if source is not None:
            check_fits(image.size_bytes, source)
        spec.check_image_settings(image_meta.id, image)
        return self.container_spec(instance, image_meta, image, asked)

    def container_spec(
        self,
        instance: objects.Instance,
        image_meta: objects.ImageMeta,
        image: EngineImage,
        asked: float,
    ) -> ContainerSpec:
        """Return the specification of an instance's container.

        :param asked: the value of ``Lxcfs.look``
        """
        rules = self._services.rules(instance)
        apart = isolation.isolation(flavor_limits.asked(instance, instance.flavor, rules))
        if not self._services.has_user_namespace(instance):
            isolation.check_user_namespace(apart)
        if self._services.own_user_namespace(instance):
            self._services.image_owners.check(image_meta.id, image)
        return spec.container_spec(
            instance,
            image_meta,
            image,
            flavor_limits.instance_limits(instance, rules),
            apart,
            runtime=CONF.docker.runtime,
            console_log_max_mb=CONF.docker.console_log_max_mb,
            mounts=self._config_drive.mounts(instance)
            + self._services.lxcfs.mounts(instance.uuid, asked),
            devices=self._config_drive.devices(instance),
            environment_from_metadata=CONF.docker.environment_from_metadata,
        )

    def destroy(
        self,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        block_devices: BlockDevices,
    ) -> None:
        """Delete the instance, and its backup if it does not live on at another host. Idempotent.

        Does nothing if a resize on this host is reverted, because the container stays.
        """
        if self._services.nova_records.is_reverted_here(instance):
            self._part_with_remote(instance, block_devices)
            return
        self.remove(instance, network_info, block_devices)
        if nova_records.is_gone_for_good(instance, self._services.name):
            self._services.backups.remove(instance.uuid)

    def _part_with_remote(self, instance: objects.Instance, block_devices: BlockDevices) -> None:
        """Take the volumes whose connections end from an instance whose resize is reverted.

        Stops the instance if it uses one, because Nova can't cancel the revert any more.
        """
        try:
            self._volumes.part_with_remote(instance, block_devices)
        except nova_exception.DeviceDetachFailed as error:
            LOG.warning("Stopping the instance for its revert: %s", error, instance=instance)
            self._power.stop_present(instance, CONF.shutdown_timeout)
            self._volumes.part_with_remote(instance, block_devices)

    def remove_remains(self) -> None:
        """Delete what deleted instances without a container left on this host.

        Nova deletes only the instances that have a container. Does nothing if ``[DEFAULT]
        running_deleted_instance_action`` does not allow Nova to do that.

        :raises EngineUnavailable: the engine does not answer
        """
        if CONF.running_deleted_instance_action != "reap":
            return
        for instance in self._services.nova_records.deleted(self._services.remains()):
            LOG.info("Deleting the remains of a deleted instance", instance=instance)
            try:
                # Nova has detached the volumes of a deleted instance.
                self.destroy(instance, network_model.NetworkInfo(), None)
            except (nova_exception.NovaException, OSError, *privsep.UNANSWERED) as error:
                LOG.warning(
                    "Failed to delete the remains of an instance: %s", error, instance=instance
                )

    def put_away(
        self,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        block_devices: BlockDevices,
    ) -> None:
        """Delete everything but the disk: stop the container and rename it to ``nova-<uuid>-away``.

        A cross-cell resize may be reverted to the container. A renamed container is not listed as
        an instance. Idempotent.
        """
        self._power.stop_present(instance, 0)
        self._volumes.disconnect(instance, block_devices)
        self._ports.unwire(instance, network_info)
        self.clean(instance, destroy_disks=False)
        name = naming.container_name(instance.uuid)
        with contextlib.suppress(exception.ContainerNotFound):
            self._services.engine.rename_container(name, name + naming.AWAY)

    def bring_back(self, instance: objects.Instance) -> None:
        """Rename the container back to ``nova-<uuid>`` after ``put_away``. Idempotent."""
        name = naming.container_name(instance.uuid)
        with contextlib.suppress(exception.ContainerNotFound):
            self._services.engine.rename_container(name + naming.AWAY, name)

    def remove(
        self,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        block_devices: BlockDevices = None,
    ) -> None:
        """Delete the instance's container and its other data on this host. Idempotent."""
        self._services.consoles.close(instance.uuid)
        self.remove_containers(instance)
        self._volumes.give_up(instance, block_devices)
        self._ports.unwire(instance, network_info)
        self.clean(instance, destroy_disks=True)

    def remove_containers(self, instance: objects.Instance) -> None:
        """Delete the instance's container, also one that is put away or rescued. Idempotent."""
        name = naming.container_name(instance.uuid)
        for own in (name, name + naming.AWAY):
            self._services.engine.remove_container(own)
        rescue.remove(self._services.engine, instance.uuid)

    def cleanup(
        self,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        block_devices: BlockDevices,
        destroy_disks: bool,
        destroy_vifs: bool,
    ) -> None:
        """Delete the instance's data on this host, or all of it except the disk. Idempotent."""
        if destroy_disks:
            self.remove_containers(instance)
            self._volumes.give_up(instance, block_devices)
        else:
            self._volumes.disconnect(instance, block_devices)
        if destroy_vifs:
            self._ports.unwire(instance, network_info)
        self.clean(instance, destroy_disks)

    def clean(self, instance: objects.Instance, destroy_disks: bool) -> None:
        """Delete the data of an instance outside its container and its network. Idempotent."""
        self._power.forget_memory(instance)
        self._config_drive.detach(instance)
        self._services.volume_devices.forget(instance.uuid)
        self._services.load_averages.delete(instance.uuid)
        port_rates.forget(Path(CONF.state_path), instance.uuid)
        if self._services.arrivals.get(instance.uuid):
            self._services.transfer.discard(self._services.data_root, instance.uuid)
            self._services.arrivals.end(instance.uuid)
        if destroy_disks:
            self._config_drive.delete(instance)

    def _image(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_meta: objects.ImageMeta,
        source: Source | None,
    ) -> EngineImage:
        if source is not None and source.image is None:
            return self._services.images.ensure_empty()
        # Also on hosts that can't limit the size of a disk.
        most = source.size if source is not None else instance.flavor.root_gb * units.Gi
        return self._services.images.ensure(context, image_meta, instance.trusted_certs, most)

    def _create_of(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_meta: objects.ImageMeta,
        container: ContainerSpec,
        source: Source | None,
    ) -> str:
        try:
            return self._create(container)
        except exception.EngineImageNotFound:
            # The image cache has deleted the image meanwhile, so it is loaded again.
            image = self._image(context, instance, image_meta, source)
            return self._create(replace(container, image_id=image.id))

    def _create(self, container: ContainerSpec) -> str:
        self._services.abandoned.sweep()
        try:
            return self._services.engine.create_container(container)
        except exception.EngineUnavailable:
            self._services.abandoned.suspect(container.name)
            raise
