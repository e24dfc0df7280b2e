# SPDX-License-Identifier: Apache-2.0
"""``DockerDriver``: maps each method that Nova calls to an operation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import os_resource_classes as orc
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.compute import provider_tree as placement
from nova.compute import utils as compute_utils
from nova.console import type as console_type
from nova.network import model as network_model
from nova.virt import driver, hardware
from nova.virt.event import EVENT_LIFECYCLE_STOPPED, LifecycleEvent
from oslo_log import log as logging

from novadocker import exception, naming
from novadocker.conf import CONF
from novadocker.state_files import alive, incident_socket
from novadocker.virt.docker.host import resources
from novadocker.virt.docker.incidents import IncidentActions, IncidentListener
from novadocker.virt.docker.migration import nova_records
from novadocker.virt.docker.migration.disk_info import SAME_HOST, read_move
from novadocker.virt.docker.network import device_names
from novadocker.virt.docker.operations.admin_password import AdminPassword
from novadocker.virt.docker.operations.build import Build
from novadocker.virt.docker.operations.collaborators import Collaborators, real_collaborators
from novadocker.virt.docker.operations.config_drive import ConfigDrive
from novadocker.virt.docker.operations.console import Console
from novadocker.virt.docker.operations.diagnostics import Diagnostics
from novadocker.virt.docker.operations.disks import refuse_disks
from novadocker.virt.docker.operations.inside_reboots import REBOOT_LOOP, InsideReboots
from novadocker.virt.docker.operations.inventory import Inventory
from novadocker.virt.docker.operations.migrate import Migrate
from novadocker.virt.docker.operations.ports import Ports
from novadocker.virt.docker.operations.power import Power
from novadocker.virt.docker.operations.refusals import before_spawn, concise
from novadocker.virt.docker.operations.rescue import Rescue
from novadocker.virt.docker.operations.resize import Resize
from novadocker.virt.docker.operations.services import Services
from novadocker.virt.docker.operations.snapshot import Snapshot
from novadocker.virt.docker.operations.suspend import Suspend
from novadocker.virt.docker.operations.volumes import Volumes
from novadocker.virt.docker.volumes.volume import ROOT_DEVICE

LOG = logging.getLogger(__name__)


class DockerDriver(driver.ComputeDriver):
    """Runs each instance as one container of the Docker Engine on this host."""

    capabilities: Mapping[str, bool] = {
        **driver.ComputeDriver.capabilities,
        # Glance has no disk format for Docker images, so archives are uploaded as raw.
        "supports_image_type_raw": True,
        "has_imagecache": True,
        "supports_attach_interface": True,
        "supports_device_tagging": True,
        "supports_tagged_attach_interface": True,
        "supports_tagged_attach_volume": True,
        "supports_extend_volume": True,
        "supports_multiattach": True,
        "supports_pcpus": True,
        "supports_evacuate": True,
        "supports_trusted_certs": True,
    }

    def __init__(self, virtapi: Any, collaborators: Collaborators | None = None) -> None:
        """Create the driver. Sends no request to the engine.

        :param collaborators: the modules and objects below the driver; the real ones by default,
            which Nova uses
        """
        super().__init__(virtapi)
        collaborators = collaborators or real_collaborators()
        self._services = services = Services(collaborators)
        self._inventory = Inventory(services)
        self._config_drive = ConfigDrive(services)
        self._ports = Ports(services, virtapi)
        self._volumes = Volumes(services)
        self._power = Power(services, self._ports, self._config_drive)
        self._suspend = Suspend(services, self._ports, self._power)
        self._build = Build(services, self._ports, self._power, self._config_drive, self._volumes)
        self._rescue = Rescue(services, self._ports, self._power, self._build)
        self._resize = Resize(services, self._power, self._volumes)
        self._migrate = Migrate(
            services,
            self._ports,
            self._power,
            self._config_drive,
            self._build,
            self._resize,
            self._volumes,
        )
        self._snapshot = Snapshot(services)
        self._admin_password = AdminPassword(services)
        self._console = Console(services)
        self._diagnostics = Diagnostics(services)
        self._incident_actions = IncidentActions()
        self._incidents = IncidentListener(Path(CONF.state_path), self._incident_actions.add)
        self._service_status = collaborators.create_service_status(virtapi)
        self._inside_reboots = InsideReboots(
            services,
            self._power,
            self._report_stop,
            partial(self._incident_actions.add, REBOOT_LOOP),
        )
        self._events = collaborators.create_events(
            services.engine,
            services.server_list,
            self.emit_event,
            partial(self._incident_actions.add, incident_socket.OOM_KILL),
            self._service_status.report,
            self._inside_reboots.add,
            services.gone,
        )

    # -- the host -----------------------------------------------------------------------------

    def init_host(self, host: str) -> None:
        """Check that this host can run servers, and start the driver's threads.

        :raises EngineUnavailable: the engine does not answer; the service manager tries again
        :raises InvalidConfiguration: the runtime shim is not registered, containerd keeps the
            engine's images, another nova-compute uses the engine, or the registry's client is
            missing
        """
        self._services.open(host)
        self._services.start()
        self._service_status.start(host)
        self._service_status.report(None)
        self._incident_actions.start()
        self._incidents.start()
        self._events.start()

    def cleanup_host(self, host: str) -> None:
        """Stop the driver's threads and close all consoles."""
        self._events.stop()
        self._incidents.stop()
        self._incident_actions.stop()
        self._service_status.stop()
        self._services.close()

    def get_host_ip_addr(self) -> str:
        """Return this host's address, ``[DEFAULT]my_ip``."""
        return str(CONF.my_ip)

    def get_host_uptime(self) -> str:
        """Return the output of ``uptime(1)``."""
        return resources.read_uptime()

    def get_available_nodes(self, refresh: bool = False) -> list[str]:
        """Return the only node of this host."""
        return [self._services.name]

    def get_available_resource(self, nodename: str) -> dict[str, object]:
        """Return the host's resources, the last known ones if the engine does not answer.

        :raises EngineUnavailable: the engine has not answered yet
        """
        alive.tell(Path(CONF.state_path))
        return self._inventory.read(nodename)

    def update_provider_tree(
        self,
        provider_tree: placement.ProviderTree,
        nodename: str,
        allocations: dict[str, Any] | None = None,
    ) -> None:
        """Write the host's inventory and the driver's traits into the tree.

        If the engine does not answer, the whole inventory is reserved and the service is disabled.
        """
        known = provider_tree.data(nodename).inventory
        try:
            info = self._services.info()
        except (exception.EngineUnavailable, exception.InvalidConfiguration) as error:
            self._service_status.report(str(error))
            provider_tree.update_inventory(nodename, resources.all_reserved(known))
            return
        self._service_status.report(None)
        further = {
            "apply Neutron's ports": self._ports.follow_neutron,
            "delete the remains of deleted servers": self._build.remove_remains,
        }
        self._services.sweep(info, further)
        ratios = self._get_allocation_ratios(known)
        self._inventory.write(provider_tree, nodename, info, ratios, self._reserved())

    def _reserved(self) -> dict[str, int]:
        return {
            orc.VCPU: CONF.reserved_host_cpus,
            orc.MEMORY_MB: CONF.reserved_host_memory_mb,
            orc.DISK_GB: self._get_reserved_host_disk_gb_from_config(),
        }

    def _report_stop(self, instance_uuid: str) -> None:
        self.emit_event(LifecycleEvent(instance_uuid, EVENT_LIFECYCLE_STOPPED))

    # -- the list of servers -------------------------------------------------------------------

    def list_instances(self) -> list[str]:
        """Return the names of this host's instances, running or not."""
        return [
            server.labels[naming.LABEL_NAME]
            for server in self._services.server_list.servers().values()
        ]

    def list_instance_uuids(self) -> list[str]:
        """Return the uuids of this host's instances, running or not."""
        return list(self._services.server_list.servers())

    def get_num_instances(self) -> int:
        """Return the number of instances; Nova calls this before it compares power states."""
        return len(self._services.server_list.servers())

    def instance_exists(self, instance: objects.Instance) -> bool:
        """Return True if the instance has a container on this host."""
        return instance.uuid in self._services.server_list.servers()

    def get_info(self, instance: objects.Instance, use_cache: bool = True) -> hardware.InstanceInfo:
        """Return the instance's power state.

        An instance whose container was seen to be deleted is shut down. If the engine lacks the
        container for another reason, such as another data root, nothing is known about it.

        :param use_cache: whether a list of servers from the last 5 s may be used
        :raises InstanceNotFound: the engine answers and has no such container
        :raises EngineUnavailable: the engine does not answer; the instance may exist
        """
        return hardware.InstanceInfo(state=self._inside_reboots.power_state(instance, use_cache))

    # -- build and deletion --------------------------------------------------------------------

    def prepare_for_spawn(self, instance: objects.Instance) -> None:
        """Load the image, and refuse what no host can build. Nova calls ``spawn`` next.

        :raises BuildRefused: no host can build the instance; the manager aborts the build
        :raises HostUnready: this host can't build the instance; the manager tries another
        :raises UnexpectedDeletingTaskStateError: the user deleted the instance meanwhile
        """
        with self._services.build_failures.prepared(), before_spawn(instance):
            refuse_disks(instance.flavor, None, partial(_build_refused, instance))
            self._build.prepare(instance)

    @concise
    def spawn(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_meta: objects.ImageMeta,
        injected_files: Sequence[tuple[str, bytes]],
        admin_password: str | None,
        allocations: dict[str, Any] | None,
        network_info: network_model.NetworkInfo | None = None,
        block_device_info: dict[str, Any] | None = None,
        power_on: bool = True,
        accel_info: Sequence[Any] | None = None,
    ) -> None:
        """Build the instance and, unless ``power_on`` is false, start it.

        :raises RequestRefused: it has disks that the driver does not provide
        :raises NovaException: see ``Build.spawn``
        """
        with self._services.build_failures.counted():
            refuse_disks(instance.flavor, block_device_info, partial(_build_refused, instance))
            self._build.spawn(
                context,
                instance,
                image_meta,
                injected_files,
                admin_password,
                network_info,
                block_device_info,
                power_on,
            )

    def destroy(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        block_device_info: dict[str, Any] | None = None,
        destroy_disks: bool = True,
        destroy_secrets: bool = True,
    ) -> None:
        """Delete the instance's container and network. Idempotent.

        If ``destroy_disks`` is false, stop and rename the container instead, because a cross-cell
        resize may be reverted to it. If a resize on this host is reverted, do nothing.
        """
        if nova_records.is_reverting(instance):
            self._inside_reboots.await_start(instance.uuid)
        if destroy_disks:
            self._build.destroy(instance, network_info, block_device_info)
        else:
            self._build.put_away(instance, network_info, block_device_info)

    def cleanup(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        block_device_info: dict[str, Any] | None = None,
        destroy_disks: bool = True,
        migrate_data: Any = None,
        destroy_vifs: bool = True,
        destroy_secrets: bool = True,
    ) -> None:
        """Delete the instance's data on this host, or all of it except the disk. Idempotent."""
        self._build.cleanup(instance, network_info, block_device_info, destroy_disks, destroy_vifs)

    # -- power ---------------------------------------------------------------------------------

    def power_on(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        block_device_info: dict[str, Any] | None = None,
        accel_info: Sequence[Any] | None = None,
        share_info: Any = None,
    ) -> None:
        """Wire and start a stopped instance. An instance that runs keeps running."""
        found = self._migrate.find_whole(instance, network_info)
        self._volumes.connect(instance, block_device_info)
        self._power.start(found, instance, network_info)

    def power_off(
        self, instance: objects.Instance, timeout: int = 0, retry_interval: int = 0
    ) -> None:
        """Stop an instance within ``timeout`` seconds. Idempotent.

        :param retry_interval: has no effect, because the driver sends one stop signal
        :raises ContainerLost: the container is renamed or out of reach, so it may run
        """
        self._power.stop(instance, timeout)

    def reboot(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        reboot_type: str,
        block_device_info: dict[str, Any] | None = None,
        bad_volumes_callback: Callable[..., None] | None = None,
        accel_info: Sequence[Any] | None = None,
        share_info: Any = None,
    ) -> None:
        """Stop and start an instance; a soft reboot waits for it to shut down."""
        timeout = CONF.shutdown_timeout if reboot_type == "SOFT" else 0
        found = self._migrate.find_whole(instance, network_info)
        self._volumes.connect(instance, block_device_info)
        self._power.restart(found, instance, network_info, timeout)

    def pause(self, instance: objects.Instance) -> None:
        """Freeze the instance's processes and set its ports down."""
        self._inside_reboots.await_start(instance.uuid)
        self._power.freeze(instance)

    def unpause(self, instance: objects.Instance) -> None:
        """Thaw the instance's processes and set its ports up."""
        ports = instance.get_network_info() or network_model.NetworkInfo()
        self._power.thaw(self._services.find(instance), instance, ports)

    def suspend(self, context: nova_context.RequestContext, instance: objects.Instance) -> None:
        """Freeze the instance's processes; their memory stays allocated, or goes to the disk."""
        self._inside_reboots.await_start(instance.uuid)
        self._suspend.suspend(context, instance)

    def resume(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        block_device_info: dict[str, Any] | None = None,
        share_info: Any = None,
    ) -> None:
        """Thaw or restore a suspended instance, or start it if it has no memory any more.

        :raises InstanceFaultRollback: the memory can't be restored, or the engine does not answer;
            the instance stays suspended
        """
        # Nova resumes no instance in ERROR, whose memory would be lost.
        with nova_records.rolled_back():
            found = self._migrate.find_whole(instance, network_info)
            self._volumes.connect(instance, block_device_info)
        self._suspend.resume(found, instance, network_info)

    def resume_state_on_host_boot(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        share_info: Any,
        block_device_info: dict[str, Any] | None = None,
    ) -> None:
        """Start an instance that ran before the host went down.

        Does nothing for an instance that is still to arrive from another host.
        """
        if not self._migrate.is_expected(instance):
            self.resume(context, instance, network_info, block_device_info)

    def process_instances_at_startup(
        self, context: nova_context.RequestContext, instances: objects.InstanceList
    ) -> objects.InstanceList:
        """Start the instances that ran before the host went down, if Nova is to resume them.

        Nova resumes one instance after the other. It resumes those that failed here again, and
        sets them to ERROR if they fail again. Nova before 34 does not call this method.

        :raises EngineUnavailable: the engine does not answer; the service manager tries again
        """
        if CONF.resume_guests_state_on_host_boot:
            self._power.start_interrupted(
                instances,
                lambda instance: self.resume(
                    context,
                    instance,
                    instance.get_network_info(),
                    self._services.read_block_devices(context, instance),
                ),
            )
        return instances

    # -- rescue --------------------------------------------------------------------------------

    @concise
    def rescue(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        image_meta: objects.ImageMeta,
        rescue_password: str,
        block_device_info: dict[str, Any] | None,
        share_info: Any,
    ) -> None:
        """Run a stand-in of another image, with the instance's files at ``/rescue``.

        :raises RescueRefused: the files of the instance cannot be mounted, or are on a volume
        """
        self._rescue.check_possible(block_device_info)
        self._inside_reboots.await_start(instance.uuid)
        self._volumes.connect(instance, block_device_info)
        self._rescue.begin(context, instance, network_info, image_meta, rescue_password)

    def unrescue(self, context: nova_context.RequestContext, instance: objects.Instance) -> None:
        """Delete the stand-in and start the instance's own container."""
        self._inside_reboots.await_start(instance.uuid)
        # After a reboot of the host, nothing is connected.
        block_devices = self._services.read_block_devices(context, instance)
        self._volumes.connect(instance, block_devices)
        self._rescue.end(instance)

    # -- resize and migration ------------------------------------------------------------------

    def check_can_live_migrate_destination(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        src_compute_info: Any,
        dst_compute_info: Any,
        block_migration: bool = False,
        disk_over_commit: bool = False,
    ) -> None:
        """Refuse live migration; without this method, Nova would set the server to ERROR.

        :raises MigrationPreCheckError: always; the conductor can deserialize only Nova's exceptions
        """
        raise nova_exception.MigrationPreCheckError(
            reason="the Docker driver has no live migration; migrate the server without it"
        )

    @concise
    def migrate_disk_and_power_off(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        dest: str,
        flavor: objects.Flavor,
        network_info: network_model.NetworkInfo,
        block_device_info: dict[str, Any] | None = None,
        timeout: int = 0,
        retry_interval: int = 0,
    ) -> str:
        """Set the limits of another flavor, or send the instance to another host.

        On the same host, the instance keeps its power state.

        :raises InstanceFaultRollback: the resize is not possible; the instance is unchanged
        """
        with nova_records.rolled_back():
            refuse_disks(flavor, block_device_info, _resize_refused)
            self._inside_reboots.await_start(instance.uuid)
            if dest != self.get_host_ip_addr():
                move = self._migrate.send(instance, dest, network_info, block_device_info, timeout)
                return move.to_text()
            self._resize.begin(instance, flavor, network_info, block_device_info)
        return SAME_HOST

    @concise
    def finish_migration(
        self,
        context: nova_context.RequestContext,
        migration: objects.Migration,
        instance: objects.Instance,
        disk_info: str,
        network_info: network_model.NetworkInfo,
        image_meta: objects.ImageMeta,
        resize_instance: bool,
        allocations: dict[str, Any],
        block_device_info: dict[str, Any] | None = None,
        power_on: bool = True,
        share_info: Any = None,
    ) -> None:
        """Set the limits of the new flavor, or create the instance of the other host's data.

        If the creation fails, a hard reboot repeats it, as Nova's log advises the operator.

        :raises InstanceFaultRollback: the new limits could not be set; the old limits are set
        """
        move = read_move(disk_info)
        if move is not None:
            self._migrate.arrive(
                instance, move, network_info, image_meta, block_device_info, power_on
            )
            return
        with nova_records.rolled_back():
            self._resize.finish(instance, network_info, block_device_info)

    def confirm_migration(
        self,
        context: nova_context.RequestContext,
        migration: objects.Migration,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
    ) -> None:
        """Delete the data of an instance that moved away. Does nothing on its own host."""
        if nova_records.is_to_other_host(migration):
            self._build.remove(instance, network_info)

    def finish_revert_migration(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        migration: objects.Migration,
        block_device_info: dict[str, Any] | None = None,
        power_on: bool = True,
        share_info: Any = None,
    ) -> None:
        """Set the limits of the old flavor, or start the instance that had moved away.

        nova-compute calls this, too, when it starts after its death during a resize. An instance
        that uses more memory than the old flavor has is restarted, as a virtual machine would be.
        """
        self._migrate.finish_revert(
            context, instance, network_info, migration, block_device_info, power_on
        )

    def rebuild(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_meta: objects.ImageMeta,
        injected_files: Sequence[tuple[str, bytes]],
        admin_password: str | None,
        allocations: dict[str, Any],
        bdms: objects.BlockDeviceMappingList,
        detach_block_devices: Callable[..., None],
        attach_block_devices: Callable[..., dict[str, Any]],
        network_info: network_model.NetworkInfo | None = None,
        evacuate: bool = False,
        **_: Any,
    ) -> None:
        """Create an evacuated instance of its last backup, if there is one.

        :param detach_block_devices: ends the attachments of the volumes to the host that died
        :param attach_block_devices: makes new ones and returns the block devices

        :raises NotImplementedError: Nova's manager must rebuild the instance
        """
        if not evacuate:
            self._inside_reboots.await_start(instance.uuid)
            raise NotImplementedError
        if compute_utils.is_volume_backed_instance(context, instance, bdms):
            # Its data is on the volume, so it has no backup.
            raise NotImplementedError
        self._migrate.evacuate(
            instance,
            image_meta,
            injected_files,
            admin_password,
            network_info,
            partial(detach_block_devices, context, bdms),
            partial(attach_block_devices, context, instance, bdms),
        )

    def cleanup_lingering_instance_resources(self, instance: objects.Instance) -> bool:
        """Delete the data of a deleted instance that belonged to another host.

        Nova calls this on both hosts of an interrupted move.
        """
        self._migrate.clean_up(instance)
        return True

    # -- volumes -------------------------------------------------------------------------------

    def get_volume_connector(self, instance: objects.Instance) -> dict[str, Any]:
        """Return what Cinder needs to know of this host, such as its initiator names."""
        return self._volumes.connector_properties()

    def default_root_device_name(
        self,
        instance: objects.Instance,
        image_meta: objects.ImageMeta,
        root_bdm: objects.BlockDeviceMapping,
    ) -> str:
        """Return the name of the root disk, after which Nova names the volumes."""
        return ROOT_DEVICE

    def get_device_name_for_instance(
        self,
        instance: objects.Instance,
        bdms: objects.BlockDeviceMappingList,
        block_device_obj: objects.BlockDeviceMapping,
    ) -> str:
        """Return the name of a volume that is to be attached, the requested one if it is free.

        :raises DevicePathInUse: the requested name is not free
        """
        names = [bdm.device_name for bdm in bdms if bdm.device_name]
        name: str = compute_utils.get_next_device_name(
            instance, [*names, ROOT_DEVICE], ROOT_DEVICE, block_device_obj.device_name
        )
        return name

    @concise
    def attach_volume(
        self,
        context: nova_context.RequestContext,
        connection_info: dict[str, Any],
        instance: objects.Instance,
        mountpoint: str,
        disk_bus: str | None = None,
        device_type: str | None = None,
        encryption: Any = None,
    ) -> None:
        """Attach a volume, running or not, as a block device.

        :raises VolumeAttachFailed: the volume cannot be attached; it is disconnected
        """
        ports = instance.get_network_info() or network_model.NetworkInfo()
        metadata = self._services.device_metadata(context, instance, ports)
        self._volumes.attach(instance, connection_info, mountpoint)
        with contextlib.ExitStack() as undo:
            undo.callback(self._volumes.detach, instance, connection_info, mountpoint)
            instance.device_metadata = metadata
            instance.save()
            undo.pop_all()

    def detach_volume(
        self,
        context: nova_context.RequestContext,
        connection_info: dict[str, Any],
        instance: objects.Instance,
        mountpoint: str,
        encryption: Any = None,
    ) -> None:
        """Detach a volume that no process of the instance has open.

        :raises DeviceDetachFailed: a process has it open; the volume stays attached
        """
        self._volumes.detach(instance, connection_info, mountpoint)

    def extend_volume(
        self,
        context: nova_context.RequestContext,
        connection_info: dict[str, Any],
        instance: objects.Instance,
        requested_size: int,
    ) -> None:
        """Make an attached volume have its new size in the instance.

        :param requested_size: in bytes
        :raises VolumeAttachFailed: the device has not the new size
        """
        self._volumes.extend(connection_info, requested_size)

    # -- images --------------------------------------------------------------------------------

    def snapshot(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_id: str,
        update_task_state: Callable[..., None],
    ) -> None:
        """Create a Glance image of an instance. A running instance is frozen for a moment.

        :raises InstanceNotRunning: the instance's container does not exist
        :raises SnapshotFailed: no image could be created; its parts are deleted
        """
        self._snapshot.create(context, instance, image_id, update_task_state)

    def manage_image_cache(
        self, context: nova_context.RequestContext, all_instances: Sequence[objects.Instance]
    ) -> None:
        """Delete unused images, by the options of ``[image_cache]``."""
        self._services.image_cache().update(context, all_instances)

    def cache_image(self, context: nova_context.RequestContext, image_id: str) -> bool:
        """Load an image before a server needs it; return True if it was not in the engine."""
        return self._services.images.cache(context, image_id)

    # -- network -------------------------------------------------------------------------------

    def plug_vifs(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Wire every VIF that is not wired, and finish an interrupted move to this host.

        nova-compute calls this for each instance when it starts. The VIFs of an instance that does
        not run are set down. An instance that rebooted from inside meanwhile is started.
        """
        self._inside_reboots.locked(
            instance.uuid, partial(self._migrate.restore, instance, network_info)
        )
        self._inside_reboots.add_missed(instance)

    def unplug_vifs(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Unplug all VIFs and delete the instance's network namespace. Idempotent."""
        self._ports.unwire(instance, network_info)

    def attach_interface(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_meta: objects.ImageMeta,
        vif: network_model.VIF,
    ) -> None:
        """Wire one more port of an instance; the other ports stay as they are.

        :raises PlugFailed: the port could not be wired and was removed again
        """
        self._ports.attach(context, instance, vif)

    def detach_interface(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        vif: network_model.VIF,
    ) -> None:
        """Unplug one port of an instance; the other ports keep their device names. Idempotent.

        :raises ContainerLost: the container does not exist, so the other ports cannot be wired
        """
        self._ports.detach(context, instance, vif)

    def inject_network_info(
        self, instance: objects.Instance, nw_info: network_model.NetworkInfo
    ) -> None:
        """Update the devices after a port got or lost a fixed address in Neutron."""
        with device_names.locked(instance.uuid):
            self._ports.apply(instance, nw_info, self._services.find(instance))

    # -- inside the server ---------------------------------------------------------------------

    def set_admin_password(self, instance: objects.Instance, new_pass: str) -> None:
        """Set the admin user's password, at the next start if the instance does not run.

        :raises SetAdminPasswdNotSupported: the image has no password file with the account
        """
        self._admin_password.set(instance, new_pass)

    # -- consoles and diagnostics --------------------------------------------------------------

    def get_console_output(
        self, context: nova_context.RequestContext, instance: objects.Instance
    ) -> str:
        """Return the end of the instance's console log, one character for each byte."""
        return self._console.read_log(instance)

    def get_serial_console(
        self, context: nova_context.RequestContext, instance: objects.Instance
    ) -> console_type.ConsoleSerial:
        """Open the instance's serial console to nova-serialproxy. Idempotent.

        :raises InstanceNotReady: the instance does not run
        """
        return self._console.open_serial(instance)

    def get_vnc_console(
        self, context: nova_context.RequestContext, instance: objects.Instance
    ) -> console_type.ConsoleVNC:
        """Refuse the console, because a container has no screen."""
        raise nova_exception.ConsoleTypeUnavailable(console_type="vnc")

    def get_spice_console(
        self, context: nova_context.RequestContext, instance: objects.Instance
    ) -> console_type.ConsoleSpice:
        """Refuse the console, because a container has no screen."""
        raise nova_exception.ConsoleTypeUnavailable(console_type="spice")

    def get_mks_console(
        self, context: nova_context.RequestContext, instance: objects.Instance
    ) -> console_type.ConsoleMKS:
        """Refuse the console, because a container has no screen."""
        raise nova_exception.ConsoleTypeUnavailable(console_type="mks")

    def get_diagnostics(self, instance: objects.Instance) -> dict[str, Any]:
        """Return the diagnostics in the free form that API versions before 2.48 show."""
        return self._diagnostics.read_free_form(instance)

    def get_instance_diagnostics(self, instance: objects.Instance) -> objects.Diagnostics:
        """Return the instance's counters since its start."""
        return self._diagnostics.read(instance)


def _build_refused(instance: objects.Instance, reason: str) -> exception.RequestRefused:
    return exception.RequestRefused(instance_uuid=instance.uuid, reason=reason)


def _resize_refused(reason: str) -> exception.ResizeRefused:
    return exception.ResizeRefused(reason=reason)
