# SPDX-License-Identifier: Apache-2.0
"""``DockerDriver``: what Nova calls, as recipes of the other modules' verbs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import os_resource_classes as orc
import psutil
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.compute import provider_tree as placement
from nova.compute import task_states
from nova.console import type as console_type
from nova.network import model as network_model
from nova.virt import driver, hardware
from oslo_log import log as logging

from novadocker import exception, naming
from novadocker.conf import CONF
from novadocker.linux import cgroup
from novadocker.privsep.guest import files, runtime
from novadocker.state_files import alive, incident_socket
from novadocker.virt.docker.containers import diagnostics, freeze, rescue, servers
from novadocker.virt.docker.events import Events
from novadocker.virt.docker.guest import console, identity
from novadocker.virt.docker.host import resources as host_facts
from novadocker.virt.docker.host import topology, traits
from novadocker.virt.docker.images.cache import ImageCache
from novadocker.virt.docker.incidents import IncidentActions, IncidentListener
from novadocker.virt.docker.limits import disk
from novadocker.virt.docker.migration import nova_records, transfer, transport
from novadocker.virt.docker.model import Container, ContainerDetail
from novadocker.virt.docker.network import device_names
from novadocker.virt.docker.network import nic as network_nic
from novadocker.virt.docker.network import vif as network_vif
from novadocker.virt.docker.operations import build, power, resize
from novadocker.virt.docker.operations.build import Builds
from novadocker.virt.docker.operations.config_drive import ConfigDrives
from novadocker.virt.docker.operations.migrate import Relocations
from novadocker.virt.docker.operations.ports import Ports
from novadocker.virt.docker.operations.power import Power
from novadocker.virt.docker.operations.rescue import Rescues
from novadocker.virt.docker.operations.resize import Resizes
from novadocker.virt.docker.operations.services import Node

LOG = logging.getLogger(__name__)

# as many bytes of console as Nova's other drivers return (MAX_CONSOLE_BYTES)
_CONSOLE_BYTES = 100 * 1024


class DockerDriver(driver.ComputeDriver):
    """Runs each instance as one container of the Docker Engine on this host."""

    capabilities: Mapping[str, bool] = {
        **driver.ComputeDriver.capabilities,
        # Glance has no disk format of Docker's: archives are uploaded as raw
        "supports_image_type_raw": True,
        "has_imagecache": True,
        "supports_attach_interface": True,
        "supports_device_tagging": True,
        "supports_tagged_attach_interface": True,
        "supports_pcpus": True,
        "supports_evacuate": True,
    }

    def __init__(self, virtapi: Any) -> None:
        """Create the driver; nothing is asked of the engine yet."""
        super().__init__(virtapi)
        self._node = Node()
        self._engine, self._listing = self._node.engine, self._node.listing
        self._config_drives = config_drives = ConfigDrives(self._node)
        self._ports = Ports(self._node, virtapi)
        self._power = Power(self._node, self._ports, config_drives)
        self._builds = Builds(self._node, self._ports, self._power, config_drives)
        self._rescues = Rescues(self._node, self._ports, self._power, self._builds)
        self._resizes = Resizes(self._node, self._power)
        self._relocations = Relocations(
            self._node, self._ports, self._power, config_drives, self._builds
        )
        self._incident_actions = IncidentActions()
        self._incidents = IncidentListener(Path(CONF.state_path), self._incident_actions.add)
        self._events = Events(
            self._engine,
            self._listing,
            self.emit_event,
            partial(self._incident_actions.add, incident_socket.OOM_KILL),
        )

    # -- the host -----------------------------------------------------------------------------

    def init_host(self, host: str) -> None:
        """Check that this host can run servers.

        :raises EngineUnavailable: the engine does not answer; the service manager tries again
        :raises InvalidConfiguration: the runtime shim is not registered, or another nova-compute
            uses the engine
        """
        self._node.open(host)
        freeze.thaw_left(self._engine, Path(CONF.instances_path))
        rescue.put_back_left(self._engine)
        transport.clear_left(self._engine)
        nova_records.resume_cut_off(host)
        network_vif.initialize()
        self._node.start()
        self._incident_actions.start()
        self._incidents.start()
        self._events.start()

    def cleanup_host(self, host: str) -> None:
        """Tell Nova of nothing more that happens, and close all consoles."""
        self._events.stop()
        self._incidents.stop()
        self._incident_actions.stop()
        self._node.close()

    def get_host_ip_addr(self) -> str:
        """Return this host's address, ``[DEFAULT]my_ip``."""
        return str(CONF.my_ip)

    def get_host_uptime(self) -> str:
        """Return what ``uptime(1)`` prints."""
        return host_facts.read_uptime()

    def get_available_nodes(self, refresh: bool = False) -> list[str]:
        """Return the one node of this host."""
        return [self._node.name]

    def get_available_resource(self, nodename: str) -> dict[str, object]:
        """Return the host's resources; EngineUnavailable while the engine is away."""
        alive.tell(Path(CONF.state_path))
        info = self._engine.info()
        return host_facts.available_resource(
            nodename,
            info,
            host_facts.read_resources(info, self._node.cpu_sets),
            topology.numa_topology(self._node.cells, self._node.cpu_sets),
        )

    def update_provider_tree(
        self,
        provider_tree: placement.ProviderTree,
        nodename: str,
        allocations: dict[str, Any] | None = None,
    ) -> None:
        """Write the host's inventory and the driver's traits into the tree."""
        known = provider_tree.data(nodename).inventory
        try:
            info = self._engine.info()
        except exception.EngineUnavailable as error:
            LOG.warning("No server can land on this host: %s", error)
            provider_tree.update_inventory(nodename, host_facts.quiesced(known))
            return
        self._node.abandoned.sweep()
        self._node.rescue_ends.sweep()
        freeze.thaw_given_up(self._engine, Path(CONF.instances_path))
        disk.keep_limited(info)
        self._node.enforcement.sweep()
        ratios = self._get_allocation_ratios(known)
        provider_tree.update_inventory(
            nodename,
            host_facts.inventory(
                host_facts.read_resources(info, self._node.cpu_sets), ratios, self._reserved()
            ),
        )
        found = traits.traits(
            host_facts.architecture(info),
            host_facts.read_cpu_features(),
            self._node.cells,
            self._node.sized_disks,
        )
        provider_tree.add_traits(nodename, *(name for name, there in found.items() if there))
        provider_tree.remove_traits(nodename, *(name for name, there in found.items() if not there))

    def _reserved(self) -> dict[str, int]:
        return {
            orc.VCPU: CONF.reserved_host_cpus,
            orc.MEMORY_MB: CONF.reserved_host_memory_mb,
            orc.DISK_GB: self._get_reserved_host_disk_gb_from_config(),
        }

    # -- which servers there are ---------------------------------------------------------------

    def list_instances(self) -> list[str]:
        """Return the names of this host's instances, running or not."""
        return [server.labels[naming.LABEL_NAME] for server in self._listing.servers().values()]

    def list_instance_uuids(self) -> list[str]:
        """Return the uuids of this host's instances, running or not."""
        return list(self._listing.servers())

    def get_num_instances(self) -> int:
        """Return how many instances there are; Nova asks before it compares power states."""
        return len(self._listing.servers())

    def instance_exists(self, instance: objects.Instance) -> bool:
        """Tell whether the instance has a container here."""
        return instance.uuid in self._listing.servers()

    def get_info(self, instance: objects.Instance, use_cache: bool = True) -> hardware.InstanceInfo:
        """Return the instance's power state, from the last seconds' list if that is allowed.

        :raises InstanceNotFound: the engine answers and has no such container
        :raises EngineUnavailable: the engine does not answer, which says nothing of the instance
        """
        server: Container | ContainerDetail | None = (
            self._listing.recent_servers().get(instance.uuid)
            if use_cache
            else self._node.find(instance)
        )
        if server is None:
            raise nova_exception.InstanceNotFound(instance_id=instance.uuid)
        return hardware.InstanceInfo(state=servers.power_state_of(server))

    # -- from nothing to a server, and back ----------------------------------------------------

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
        """Make the instance and, unless ``power_on`` is false, start it.

        :raises StartFailed: it has disks that the driver does not provide; else as ``Builds.spawn``
        """
        build.refuse_disks(instance, block_device_info)
        self._builds.spawn(
            context,
            instance,
            image_meta,
            injected_files,
            admin_password,
            network_info,
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
        """Remove the instance's container and network; absent is fine.

        What a revert of a resize on this host goes back to is left alone. A container whose disk
        is to stay is stopped and stays, but is no server here any more: an instance may come back
        from another cell to it.
        """
        if not destroy_disks:
            with contextlib.suppress(nova_exception.InstanceNotFound):
                self.power_off(instance)
            self.cleanup(context, instance, network_info, destroy_disks=False)
            self._builds.hide(instance)
        elif not nova_records.is_reverted_here(instance):
            self._builds.remove(instance, network_info)
            if nova_records.is_gone_for_good(instance, self._node.name):
                self._node.copies.remove(instance.uuid)

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
        """Remove what an instance has on the host, or all but its disk; absent is fine."""
        if destroy_disks:
            self._builds.remove_containers(instance)
        if destroy_vifs:
            self._ports.unwire(instance, network_info)
        self._builds.clean(instance, destroy_disks)

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
        """Wire and start a stopped instance; one that runs keeps running."""
        found = self._relocations.find_whole(instance, network_info)
        self._power.start(found, instance, network_info)

    def power_off(
        self, instance: objects.Instance, timeout: int = 0, retry_interval: int = 0
    ) -> None:
        """Stop an instance within ``timeout`` seconds; a stopped one is fine."""
        self._power.stop(instance, timeout, retry_interval)

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
        """Stop and start an instance; a soft reboot lets it shut down first."""
        timeout = CONF.shutdown_timeout if reboot_type == "SOFT" else 0
        found = self._relocations.find_whole(instance, network_info)
        self._power.restart(found, instance, network_info, timeout)

    def pause(self, instance: objects.Instance) -> None:
        """Freeze the instance's processes; nobody answers for them meanwhile."""
        self._power.freeze(instance)

    def unpause(self, instance: objects.Instance) -> None:
        """Let the instance's processes go on."""
        ports = instance.get_network_info() or network_model.NetworkInfo()
        self._power.thaw(self._node.find(instance), instance, ports)

    def suspend(self, context: nova_context.RequestContext, instance: objects.Instance) -> None:
        """Freeze the instance's processes; their memory stays where it is."""
        self.pause(instance)

    def resume(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        block_device_info: dict[str, Any] | None = None,
        share_info: Any = None,
    ) -> None:
        """Let a suspended instance go on; one that lost its processes meanwhile is started."""
        found = self._relocations.find_whole(instance, network_info)
        self._power.resume(found, instance, network_info)

    def resume_state_on_host_boot(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        share_info: Any,
        block_device_info: dict[str, Any] | None = None,
    ) -> None:
        """Start an instance that ran before the host went down."""
        self.resume(context, instance, network_info)

    def process_instances_at_startup(
        self, context: nova_context.RequestContext, instances: objects.InstanceList
    ) -> objects.InstanceList:
        """Start the instances that ran before the host went down, if Nova is to resume them.

        Nova resumes one after the other. It does that all the same for those that failed here,
        and sets them to ERROR if they do again. Nova before 34 does not ask for this.

        :raises EngineUnavailable: the engine does not answer; the service manager tries again
        """
        if CONF.resume_guests_state_on_host_boot:
            power.start_all(
                power.interrupted(instances, self._listing.servers()),
                lambda instance: self.resume(context, instance, instance.get_network_info()),
            )
            # what plugs their ports next must not take them for stopped
            self._listing.servers()
        return instances

    # -- rescue --------------------------------------------------------------------------------

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
        """Run another image in an instance's place, which has its files at ``/rescue``.

        :raises RescueRefused: its files can't be mounted
        """
        self._rescues.begin(context, instance, network_info, image_meta, rescue_password)

    def unrescue(self, context: nova_context.RequestContext, instance: objects.Instance) -> None:
        """Start an instance's own container again, in the place of the one for its rescue."""
        self._rescues.end(instance)

    # -- resize --------------------------------------------------------------------------------

    def check_can_live_migrate_destination(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        src_compute_info: Any,
        dst_compute_info: Any,
        block_migration: bool = False,
        disk_over_commit: bool = False,
    ) -> None:
        """Refuse, so that Nova does not set the server to ERROR.

        :raises MigrationPreCheckError: always; the conductor knows only Nova's own
        """
        raise nova_exception.MigrationPreCheckError(
            reason="the Docker driver has no live migration; migrate the server without it"
        )

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
        """Give an instance another flavor's limits, or send it to another host.

        On its host one that runs goes on, as does a stopped one.

        :raises InstanceFaultRollback: it can't be done, and the instance is as it was
        """
        with nova_records.rolled_back():
            resize.refuse_disks(flavor, driver.block_device_info_get_mapping(block_device_info))
            if dest != self.get_host_ip_addr():
                return self._relocations.send(
                    instance, dest, network_info, timeout, retry_interval
                ).to_text()
            self._resizes.begin(instance, flavor, network_info)
        return resize.DISK_INFO

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
        """See that an instance has the limits of its flavor, which is the new one by now.

        One that comes from another host is made of what that host sent. If that fails, a hard
        reboot does it again, as Nova tells the operator in its log.

        :raises InstanceFaultRollback: it has lost them, and has the old ones
        """
        move = transfer.read_move(disk_info)
        if move is not None:
            self._relocations.arrive(instance, move, network_info, image_meta, power_on)
            return
        with nova_records.rolled_back():
            self._resizes.finish(instance, network_info)

    def confirm_migration(
        self,
        context: nova_context.RequestContext,
        migration: objects.Migration,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
    ) -> None:
        """Remove what an instance left here when it moved; on its own host that is nothing."""
        if nova_records.is_to_other_host(migration):
            self._builds.remove(instance, network_info)

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
        """Give an instance the limits of its flavor, which is the old one again.

        One that had moved is started again, as it was when it left.

        Nova asks for it when it starts, too, after it died in the middle of a resize. An instance
        that has come to need more memory is started anew, as a virtual machine would be.
        """
        if migration.cross_cell_move:
            self._builds.unhide(instance)
        found = self._node.find(instance)
        if not nova_records.is_to_other_host(migration):
            self._resizes.revert(found, instance, network_info)
        elif power_on:
            self._relocations.come_back(found, instance, network_info)
        nova_records.take_back(context, instance, migration)

    def rebuild(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_meta: objects.ImageMeta,
        injected_files: Sequence[tuple[str, bytes]],
        admin_password: str | None,
        *_: Any,
        network_info: network_model.NetworkInfo | None = None,
        evacuate: bool = False,
        **__: Any,
    ) -> None:
        """Make an evacuated instance of its last copy, if there is one.

        :raises NotImplementedError: the manager is to build it anew
        """
        move = self._node.copies.fetch(instance.uuid, self._node.data_root) if evacuate else None
        if move is None:
            raise NotImplementedError
        instance.task_state = task_states.REBUILD_SPAWNING
        instance.save(expected_task_state=[task_states.REBUILDING])
        ports = network_info if network_info is not None else network_model.NetworkInfo()
        self._config_drives.write(instance, ports, injected_files, admin_password)
        self._relocations.arrive(instance, move, ports, image_meta, True)

    def cleanup_lingering_instance_resources(self, instance: objects.Instance) -> bool:
        """Remove what a deleted instance has here, although it was on another host.

        A move was cut off, as by the end of nova-compute, and Nova asks both of its hosts.
        """
        ports = instance.get_network_info() or network_model.NetworkInfo()
        self._builds.remove(instance, ports)
        transfer.discard(self._node.data_root, instance.uuid)
        return True

    # -- images --------------------------------------------------------------------------------

    def snapshot(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_id: str,
        update_task_state: Callable[..., None],
    ) -> None:
        """Make a Glance image of an instance, which may run; one that runs is frozen a moment.

        :raises InstanceNotRunning: the instance is gone
        :raises SnapshotFailed: no image could be made; what there was of it is removed
        """
        try:
            found = self._node.find(instance)
        except nova_exception.InstanceNotFound as error:
            raise nova_exception.InstanceNotRunning(instance_id=instance.uuid) from error
        update_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD)
        with self._node.images.snapshot(found) as image:
            update_task_state(
                task_state=task_states.IMAGE_UPLOADING,
                expected_state=task_states.IMAGE_PENDING_UPLOAD,
            )
            self._node.images.upload(context, image_id, image)

    def manage_image_cache(
        self, context: nova_context.RequestContext, all_instances: Sequence[objects.Instance]
    ) -> None:
        """Remove images that no instance uses, by the options of ``[image_cache]``."""
        ImageCache(self._engine).update(context, all_instances)

    def cache_image(self, context: nova_context.RequestContext, image_id: str) -> bool:
        """Have an image ready before a server needs it; tell whether it had to be loaded."""
        return self._node.images.cache(context, image_id)

    # -- network -------------------------------------------------------------------------------

    def plug_vifs(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Wire every VIF that is not wired; Nova asks for each instance when it starts.

        The VIFs of one that does not run are there, but silent. A move to this host that was cut
        off is finished.
        """
        if nova_records.is_cut_off(instance):
            self._relocations.finish_cut_off(instance, network_info)
        self._ports.restore(instance, network_info)

    def unplug_vifs(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Unwire all VIFs and remove the instance's network namespace; absent is fine."""
        self._ports.unwire(instance, network_info)

    def attach_interface(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_meta: objects.ImageMeta,
        vif: network_model.VIF,
    ) -> None:
        """Wire one more port of an instance, running or not; the others are left alone.

        :raises PlugFailed: it could not be wired, and nothing is left of it
        """
        self._ports.attach(context, instance, vif)

    def detach_interface(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        vif: network_model.VIF,
    ) -> None:
        """Unwire one port of an instance; the others keep their names. Absent is fine.

        :raises InstanceNotFound: there is no container any more, whose other ports it would wire
        """
        self._ports.detach(context, instance, vif)

    def inject_network_info(
        self, instance: objects.Instance, nw_info: network_model.NetworkInfo
    ) -> None:
        """Make the devices what Neutron says now: a port got or lost a fixed address."""
        with device_names.locked(instance.uuid):
            self._ports.apply(instance, nw_info, self._node.find(instance))

    # -- what is inside ------------------------------------------------------------------------

    def set_admin_password(self, instance: objects.Instance, new_pass: str) -> None:
        """Set the admin user's password; for an instance that does not run, at its next start.

        :raises SetAdminPasswdNotSupported: the image keeps no password of such an account
        """
        found = self._node.find(instance)
        login = identity.password_login(instance, instance.image_meta, new_pass)
        if not found.pid:
            runtime.bind_container(found.id, instance.uuid, login=asdict(login))
        elif not files.set_password(
            found.id, found.pid, login.user, login.password_hash, login.password_day
        ):
            raise nova_exception.SetAdminPasswdNotSupported()

    # -- what is seen of a server --------------------------------------------------------------

    def get_console_output(
        self, context: nova_context.RequestContext, instance: objects.Instance
    ) -> str:
        """Return the end of what the instance wrote to its console, a character for each byte."""
        output = self._engine.read_console(self._node.find(instance).id, _CONSOLE_BYTES)
        # the manager encodes it by the same rule
        return output.decode("latin-1")

    def get_serial_console(
        self, context: nova_context.RequestContext, instance: objects.Instance
    ) -> console_type.ConsoleSerial:
        """Open the instance's serial console to nova-serialproxy, unless it is open.

        :raises InstanceNotReady: it does not run
        """
        found = self._node.find(instance)
        if not found.pid:
            raise nova_exception.InstanceNotReady(instance_id=instance.uuid)
        kind = instance.system_metadata.get("image_os_console")
        opener = console.terminal_opener(self._engine, found.id, kind)
        port = self._node.consoles.open(instance.uuid, found.id, opener)
        return console_type.ConsoleSerial(CONF.serial_console.proxyclient_address, port)

    def get_vnc_console(
        self, context: nova_context.RequestContext, instance: objects.Instance
    ) -> console_type.ConsoleVNC:
        """Refuse it: a container has no screen."""
        raise nova_exception.ConsoleTypeUnavailable(console_type="vnc")

    def get_spice_console(
        self, context: nova_context.RequestContext, instance: objects.Instance
    ) -> console_type.ConsoleSpice:
        """Refuse it: a container has no screen."""
        raise nova_exception.ConsoleTypeUnavailable(console_type="spice")

    def get_mks_console(
        self, context: nova_context.RequestContext, instance: objects.Instance
    ) -> console_type.ConsoleMKS:
        """Refuse it: a container has no screen."""
        raise nova_exception.ConsoleTypeUnavailable(console_type="mks")

    def get_diagnostics(self, instance: objects.Instance) -> dict[str, Any]:
        """Return the diagnostics in the free form that API versions before 2.48 show.

        It alone has room for the number of processes killed for want of memory.
        """
        pid = self._node.find(instance).pid
        return {
            "oom_kills": cgroup.read_kills(pid) if pid else 0,
            **{
                name: value
                for name, value in self.get_instance_diagnostics(instance)
                .obj_to_primitive()["nova_object.data"]
                .items()
                if isinstance(value, (str, int))
            },
        }

    def get_instance_diagnostics(self, instance: objects.Instance) -> objects.Diagnostics:
        """Return the instance's counters since its start."""
        found = self._node.find(instance)
        counters = psutil.net_io_counters(pernic=True)
        return diagnostics.diagnostics(
            servers.power_state_of(found),
            found.started_at,
            self._engine.read_usage(found.id) if found.pid else None,
            [
                (
                    nic.mac,
                    counters[nic.host_device]._asdict() if nic.host_device in counters else None,
                )
                for nic in network_nic.nics_from_network_info(instance.get_network_info() or [])
            ],
            bool(instance.config_drive),
        )
