# SPDX-License-Identifier: Apache-2.0
"""``DockerDriver``: what Nova calls, as recipes of the other modules' verbs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import os_resource_classes as orc
import psutil
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.compute import power_state, task_states, vm_states
from nova.compute import provider_tree as placement
from nova.console import type as console_type
from nova.network import model as network_model
from nova.virt import driver, hardware
from oslo_log import log as logging

from novadocker import alive, exception, naming, portrates
from novadocker.conf import CONF
from novadocker.virt.docker import (
    attachments,
    configdrive,
    consoles,
    diagnostics,
    disks,
    drives,
    freezer,
    guest,
    interior,
    inventory,
    isolation,
    kills,
    lifecycle,
    limits,
    netns,
    nics,
    plugging,
    rescue,
    spec,
    startup,
    subids,
    tags,
    topology,
    traits,
    transfer,
    vifs,
    ways,
)
from novadocker.virt.docker import host as host_facts
from novadocker.virt.docker import migration as moves
from novadocker.virt.docker.abandoned import AbandonedContainers
from novadocker.virt.docker.arrivals import Arrivals
from novadocker.virt.docker.cache import ImageCache
from novadocker.virt.docker.copies import Copies
from novadocker.virt.docker.enforcement import Enforcement
from novadocker.virt.docker.engine import Engine, Tls
from novadocker.virt.docker.events import Events
from novadocker.virt.docker.images import ImageStore
from novadocker.virt.docker.kill_actions import KillActions
from novadocker.virt.docker.listing import Listing
from novadocker.virt.docker.loads import Loads
from novadocker.virt.docker.lxcfs import Lxcfs
from novadocker.virt.docker.meanwhile import meanwhile
from novadocker.virt.docker.model import (
    Container,
    ContainerDetail,
    ContainerSpec,
    EngineImage,
    Limits,
    Mount,
)

LOG = logging.getLogger(__name__)

# the engine's word for a container's state: Nova's number for the server's
POWER_STATES: Mapping[str, int] = {
    "created": power_state.SHUTDOWN,
    "running": power_state.RUNNING,
    "restarting": power_state.RUNNING,
    "paused": power_state.PAUSED,
    "exited": power_state.SHUTDOWN,
    "removing": power_state.SHUTDOWN,
    "dead": power_state.CRASHED,
}

_ENDED_STATES = (power_state.SHUTDOWN, power_state.CRASHED)

# the kernel would answer for frozen processes, too
_SILENT_STATES = (*_ENDED_STATES, power_state.PAUSED)

# what the manager passes to power_off; a soft reboot gets no figures of its own
_SHUTDOWN_RETRY_SECONDS = 10

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
        self._engine = Engine(
            CONF.docker.api_url,
            CONF.docker.api_timeout,
            CONF.docker.image_load_timeout,
            Tls(CONF.docker.ca_file, CONF.docker.cert_file, CONF.docker.key_file),
        )
        self._listing = Listing(self._engine)
        self._abandoned = AbandonedContainers(self._engine)
        self._loads = Loads(Path(CONF.state_path, "loads"), self._engine, self._listing)
        self._arrivals = Arrivals(Path(CONF.state_path, "arrivals"))
        self._copies = Copies(self._engine, self._listing, Path(CONF.state_path, "copies"))
        self._lxcfs = Lxcfs(CONF.docker.lxcfs_folder, self._engine, self._listing, self._loads)
        self._kill_actions = KillActions()
        self._events = Events(self._engine, self._listing, self.emit_event, self._kill_actions.add)
        self._node = CONF.host

    # -- the host -----------------------------------------------------------------------------

    def init_host(self, host: str) -> None:
        """Check that this host can run servers.

        :raises EngineUnavailable: the engine does not answer; the service manager tries again
        :raises InvalidConfiguration: the runtime shim is not registered, or another nova-compute
            uses the engine
        """
        self._node = host
        info = self._engine.info()
        self._engine.claim(info)
        if CONF.docker.runtime not in info.runtimes:
            raise exception.InvalidConfiguration(
                reason=f"the engine has no runtime {CONF.docker.runtime!r}; register the shim "
                "under 'runtimes' in daemon.json and reload the engine"
            )
        if not info.live_restore:
            LOG.warning(
                "live-restore is off: all servers stop when the engine does; set it in daemon.json"
            )
        self._id_maps = subids.read_id_maps(info)
        self._cells = topology.read_cells()
        self._cpu_sets = topology.cpu_sets(self._cells)
        self._sized_disks = host_facts.can_size_disks(info)
        if not self._sized_disks:
            LOG.warning("A server can fill the disk of this host: its size can't be limited")
        self._enforcement = Enforcement(self._engine, info, Path(CONF.state_path))
        self._data_root = info.data_root
        self._images = ImageStore(self._engine, host_facts.architecture(info))
        freezer.thaw_left(self._engine, Path(CONF.instances_path))
        rescue.put_back_left(self._engine)
        ways.clear_left(self._engine)
        moves.resume_cut_off(host)
        vifs.initialize()
        self._consoles = consoles.Consoles(
            self._engine,
            CONF.serial_console.proxyclient_address,
            consoles.parse_proxies(CONF.docker.serial_console_proxies),
            CONF.consoleauth.token_ttl,
        )
        self._lxcfs.start()
        self._loads.start()
        self._kill_actions.start()
        self._copies.start()
        self._events.start()

    def cleanup_host(self, host: str) -> None:
        """Tell Nova of nothing more that happens, and close all consoles."""
        self._events.stop()
        self._kill_actions.stop()
        self._consoles.stop()
        self._lxcfs.stop()
        self._loads.stop()
        self._copies.stop()
        self._engine.release()

    def get_host_ip_addr(self) -> str:
        """Return this host's address, ``[DEFAULT]my_ip``."""
        return str(CONF.my_ip)

    def get_host_uptime(self) -> str:
        """Return what ``uptime(1)`` prints."""
        return host_facts.read_uptime()

    def get_available_nodes(self, refresh: bool = False) -> list[str]:
        """Return the one node of this host."""
        return [self._node]

    def get_available_resource(self, nodename: str) -> dict[str, object]:
        """Return the host's resources; EngineUnavailable while the engine is away."""
        alive.tell(Path(CONF.state_path))
        info = self._engine.info()
        return host_facts.available_resource(
            nodename,
            info,
            host_facts.read_resources(info, self._cpu_sets),
            topology.numa_topology(self._cells, self._cpu_sets),
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
            provider_tree.update_inventory(nodename, inventory.quiesced(known))
            return
        self._abandoned.sweep()
        disks.keep_limited(info)
        self._enforcement.sweep()
        ratios = self._get_allocation_ratios(known)
        provider_tree.update_inventory(
            nodename,
            inventory.inventory(
                host_facts.read_resources(info, self._cpu_sets), ratios, self._reserved()
            ),
        )
        found = traits.traits(
            host_facts.architecture(info),
            host_facts.read_cpu_features(),
            self._cells,
            self._sized_disks,
        )
        provider_tree.add_traits(nodename, *(name for name, there in found.items() if there))
        provider_tree.remove_traits(nodename, *(name for name, there in found.items() if not there))

    def _rules(self) -> limits.Rules:
        return limits.rules(
            self._cells,
            self._cpu_sets,
            pids=CONF.docker.default_pids_limit,
            sized_disks=self._sized_disks,
            image_may_ask=CONF.docker.image_extra_specs,
        )

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
            self._listing.recent_servers().get(instance.uuid) if use_cache else self._find(instance)
        )
        if server is None:
            raise nova_exception.InstanceNotFound(instance_id=instance.uuid)
        return hardware.InstanceInfo(state=_power_state(server))

    def _find(self, instance: objects.Instance) -> ContainerDetail:
        try:
            found = self._engine.inspect_container(naming.container_name(instance.uuid))
        except exception.ContainerNotFound as error:
            raise nova_exception.InstanceNotFound(instance_id=instance.uuid) from error
        if not naming.owned(found.name, found.labels):
            raise nova_exception.InstanceNotFound(instance_id=instance.uuid)
        return found

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
        """Wire the instance, create its container while Neutron works, then start it.

        The image comes before the first look at ``network_info``, which waits until Neutron has
        allocated the ports.

        :raises ImageUnacceptable: the image can't be booted on any host
        :raises BuildAbortException: its command does not run, or Neutron reports no port up
        """
        _refuse_disks(instance, block_device_info)
        asked = self._lxcfs.look()
        rules = self._rules()
        most = limits.instance_limits(instance, rules)
        self._enforcement.check_possible(most)
        image = self._images.ensure(context, image_meta)
        limits.check_image_fits(image.size_bytes, most)
        container = self._container_spec(instance, image_meta, image, most, rules, asked)
        login = guest.login(instance, image_meta, admin_password)
        ports = network_info if network_info is not None else network_model.NetworkInfo()
        vifs.check_supported(ports)
        # Nova saves the instance when it runs
        attachments.record_names(instance, ports)
        with contextlib.ExitStack() as undo:
            undo.callback(self.unplug_vifs, instance, ports)
            with self._plugged(instance, ports):
                instance.device_metadata = tags.device_metadata(context, instance, ports)
                if configdrive.required(instance):
                    undo.callback(drives.delete_drive, self._node, instance.uuid)
                    undo.callback(self._detach_drive, instance)
                    self._write_drive(instance, ports, injected_files, admin_password)
                container_id = self._create_of(context, image_meta, container)
                undo.callback(self._abandoned.remove, container_id)
                if injected_files:
                    self._engine.put_files(container_id, dict(injected_files))
                netns.bind_container(
                    container_id,
                    instance.uuid,
                    etc_files=_etc_files(instance, ports),
                    login=login and asdict(login),
                )
            if power_on:
                self._start_first(instance, container_id, ports)
            undo.pop_all()

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

        What a revert of a resize on this host goes back to is left alone.
        """
        if not moves.is_reverted_here(instance):
            self._remove(context, instance, network_info, destroy_disks)
            if moves.is_gone_for_good(instance, self._node):
                self._copies.remove(instance.uuid)

    def _remove(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        destroy_disks: bool = True,
    ) -> None:
        self._consoles.close(instance.uuid)
        self._engine.remove_container(naming.container_name(instance.uuid))
        rescue.remove(self._engine, instance.uuid)
        self.cleanup(context, instance, network_info, destroy_disks=destroy_disks)

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
        """Remove what an instance without container leaves on the host; absent is fine."""
        if destroy_vifs:
            self.unplug_vifs(instance, network_info)
        self._detach_drive(instance)
        self._loads.delete(instance.uuid)
        portrates.forget(Path(CONF.state_path), instance.uuid)
        if self._arrivals.get(instance.uuid):
            transfer.discard(self._data_root, instance.uuid)
            self._arrivals.end(instance.uuid)
        if destroy_disks and instance.config_drive:
            drives.delete_drive(self._node, instance.uuid)

    def _write_drive(
        self,
        instance: objects.Instance,
        ports: network_model.NetworkInfo,
        injected_files: Sequence[tuple[str, bytes]],
        admin_password: str | None,
    ) -> None:
        files, device = configdrive.build(instance, ports, injected_files, admin_password)
        drives.write_drive(self._node, instance.uuid, files, self._root(), device)

    def _attach_drive(self, instance: objects.Instance) -> None:
        if configdrive.wants_device(instance):
            drives.attach_device(self._node, instance.uuid)

    def _detach_drive(self, instance: objects.Instance) -> None:
        if configdrive.wants_device(instance):
            drives.detach_device(self._node, instance.uuid)

    def _root(self) -> tuple[int, int]:
        """Return the user and group on the host who are root in a server."""
        maps = self._id_maps
        return (maps.users[0][1], maps.groups[0][1]) if maps else (0, 0)

    def _config_drive_mounts(self, instance: objects.Instance) -> tuple[Mount, ...]:
        if not configdrive.required(instance):
            return ()
        return configdrive.mounts(drives.files_folder(self._node, instance.uuid))

    def _container_spec(
        self,
        instance: objects.Instance,
        image_meta: objects.ImageMeta,
        image: EngineImage,
        most: Limits,
        rules: limits.Rules,
        asked: float,
    ) -> ContainerSpec:
        return spec.container_spec(
            instance,
            image_meta,
            image,
            most,
            isolation.isolation(limits.asked(instance, instance.flavor, rules)),
            runtime=CONF.docker.runtime,
            console_log_max_mb=CONF.docker.console_log_max_mb,
            mounts=self._config_drive_mounts(instance) + self._lxcfs.mounts(instance.uuid, asked),
            devices=_config_drive_devices(instance),
        )

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
            image = self._images.ensure(context, image_meta)
            return self._create(replace(container, image_id=image.id))

    def _create(self, container: ContainerSpec) -> str:
        self._abandoned.sweep()
        try:
            return self._engine.create_container(container)
        except exception.EngineUnavailable:
            self._abandoned.suspect(container.name)
            raise

    def _start_first(
        self, instance: objects.Instance, container_id: str, ports: network_model.NetworkInfo
    ) -> None:
        try:
            self._attach_drive(instance)
            self._run(instance, container_id, ports)
        except exception.EngineError as error:
            raise exception.StartFailed(
                instance_uuid=instance.uuid, reason=error.format_message()
            ) from error

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
        found = self._find_whole(context, instance, network_info)
        self._start(found, instance, network_info)

    def power_off(
        self, instance: objects.Instance, timeout: int = 0, retry_interval: int = 0
    ) -> None:
        """Stop an instance within ``timeout`` seconds; a stopped one is fine."""
        self._consoles.close(instance.uuid)
        lifecycle.stop(self._engine, self._find(instance).id, timeout, retry_interval)
        self._detach_drive(instance)
        vifs.silence_vifs(instance, instance.get_network_info())

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
        found = self._find_whole(context, instance, network_info)
        self._consoles.close(instance.uuid)
        lifecycle.stop(self._engine, found.id, timeout, _SHUTDOWN_RETRY_SECONDS)
        self._start(found, instance, network_info)

    def pause(self, instance: objects.Instance) -> None:
        """Freeze the instance's processes; nobody answers for them meanwhile."""
        self._engine.pause_container(self._find(instance).id)
        vifs.silence_vifs(instance, instance.get_network_info())

    def unpause(self, instance: objects.Instance) -> None:
        """Let the instance's processes go on."""
        ports = instance.get_network_info() or network_model.NetworkInfo()
        self._thaw(self._find(instance), instance, ports)

    def _thaw(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
    ) -> None:
        self._engine.unpause_container(found.id)
        self._plug(instance, network_info, self._find(instance))

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
        found = self._find_whole(context, instance, network_info)
        if found.status == "paused":
            self._thaw(found, instance, network_info)
        else:
            self._start(found, instance, network_info)

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
            startup.start_all(
                startup.interrupted(instances, self._listing.servers()),
                lambda instance: self.resume(context, instance, instance.get_network_info()),
            )
            # what plugs their ports next must not take them for stopped
            self._listing.servers()
        return instances

    def _start(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
    ) -> None:
        if rescue.is_stand_in(found) and instance.vm_state != vm_states.RESCUED:
            self._end_rescue(instance)
            found = self._find(instance)
        if rescue.is_stand_in(found):
            rescue.prepare(self._engine, instance.uuid)
        self._wire(instance, network_info)
        netns.bind_container(found.id, instance.uuid)
        self._lxcfs.await_mended()
        self._attach_drive(instance)
        self._run(instance, found.id, network_info)

    def _run(
        self,
        instance: objects.Instance,
        container_id: str,
        network_info: network_model.NetworkInfo,
    ) -> None:
        most = limits.instance_limits(instance, self._rules())
        pairs = _device_pairs(instance, network_info)
        with (
            # the VIFs are there before the process is
            meanwhile(self._enforcement.limit_ports, instance.uuid, most, pairs),
            meanwhile(vifs.announce_vifs, instance, network_info),
            lifecycle.started(self._engine, container_id, CONF.docker.start_grace) as found,
        ):
            self._enforcement.limit_container(instance.uuid, found, most, pairs)

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
        self._end_rescue(instance)
        own = self._find(instance)
        asked = self._lxcfs.look()
        rules = self._rules()
        most = limits.instance_limits(instance, rules)
        image = self._images.ensure(context, image_meta)
        limits.check_image_fits(image.size_bytes, most)
        container = rescue.stand_in(
            self._container_spec(instance, image_meta, image, most, rules, asked),
            self._engine.inspect_storage(own.id),
            instance.uuid,
        )
        login = guest.login(instance, image_meta, rescue_password)
        self.power_off(instance)
        with contextlib.ExitStack() as undo:
            undo.callback(self._end_rescue, instance)
            rescue.set_aside(self._engine, instance.uuid, own)
            rescue.prepare(self._engine, instance.uuid)
            # not _create: when the answer is lost, what has the name later may be the own one
            container_id = self._engine.create_container(container)
            self._wire(instance, network_info)
            netns.bind_container(
                container_id,
                instance.uuid,
                etc_files=_etc_files(instance, network_info),
                login=login and asdict(login),
            )
            self._lxcfs.await_mended()
            self._start_first(instance, container_id, network_info)
            undo.pop_all()

    def unrescue(self, context: nova_context.RequestContext, instance: objects.Instance) -> None:
        """Start an instance's own container again, in the place of the one for its rescue."""
        self.power_off(instance)
        self._end_rescue(instance)
        ports = instance.get_network_info() or network_model.NetworkInfo()
        self._start(self._find(instance), instance, ports)

    def _end_rescue(self, instance: objects.Instance) -> None:
        gone = rescue.put_back(self._engine, instance.uuid)
        if gone:
            netns.release_container(gone)

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
        with moves.rolled_back():
            moves.refuse_disks(flavor, driver.block_device_info_get_mapping(block_device_info))
            if dest != self.get_host_ip_addr():
                return self._send_away(instance, dest, network_info, timeout, retry_interval)
            rules = self._rules()
            moves.check_isolation(
                isolation.isolation(limits.asked(instance, instance.flavor, rules)),
                isolation.isolation(limits.asked(instance, flavor, rules)),
            )
            new = limits.limits_for(instance, flavor, moves.new_topology(instance), rules)
            self._resize(instance, limits.instance_limits(instance, rules), new, network_info)
        return moves.DISK_INFO

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
            self._arrivals.begin(instance.uuid, disk_info)
            plugged = self._plugged(instance, network_info)
            self._take_in(context, instance, move, network_info, image_meta, power_on, plugged)
            return
        with moves.rolled_back():
            rules = self._rules()
            old = limits.limits_for(
                instance, instance.old_flavor, moves.old_topology(instance), rules
            )
            self._resize(instance, old, limits.instance_limits(instance, rules), network_info)

    def confirm_migration(
        self,
        context: nova_context.RequestContext,
        migration: objects.Migration,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
    ) -> None:
        """Remove what an instance left here when it moved; on its own host that is nothing."""
        if moves.is_to_other_host(migration):
            self._remove(context, instance, network_info)

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
        found = self._find(instance)
        if moves.is_to_other_host(migration):
            if power_on and _power_state(found) in _ENDED_STATES:
                with self._plugged(instance, network_info):
                    pass
                self._start(found, instance, network_info)
            moves.take_back(context, instance, migration)
            return
        most = limits.limits_for(
            instance, instance.flavor, moves.old_topology(instance), self._rules()
        )
        crowded = self._enforcement.memory_in_use(found) > most.memory_bytes
        if crowded:
            LOG.warning("It uses more memory than it is to have: restarting", instance=instance)
            lifecycle.stop(self._engine, found.id, CONF.shutdown_timeout, _SHUTDOWN_RETRY_SECONDS)
            found = self._find(instance)
        moves.set_limits(
            self._enforcement, instance.uuid, found, most, _device_pairs(instance, network_info)
        )
        if crowded:
            self._start(found, instance, network_info)
        moves.take_back(context, instance, migration)

    def _resize(
        self,
        instance: objects.Instance,
        old: Limits,
        new: Limits,
        network_info: network_model.NetworkInfo,
    ) -> None:
        found = self._find(instance)
        moves.check_fits(self._enforcement, found, old, new)
        moves.change(
            self._enforcement,
            instance.uuid,
            found,
            old,
            new,
            _device_pairs(instance, network_info),
        )

    # -- to another host -----------------------------------------------------------------------

    def _send_away(
        self,
        instance: objects.Instance,
        dest: str,
        network_info: network_model.NetworkInfo,
        timeout: int,
        retry_interval: int,
    ) -> str:
        """Send an instance's data to a host and stop it; it stays here until that is confirmed."""
        found = self._find(instance)
        running = _power_state(found) not in _ENDED_STATES
        drive = drives.folder(self._node, instance.uuid) if configdrive.required(instance) else ""
        storage = self._engine.inspect_storage(found.id)
        with contextlib.ExitStack() as undo:
            with transfer.session(
                CONF.docker.transfer_command,
                dest,
                ways.way(self._engine, instance.uuid),
                instance.uuid,
                found.image_id,
                storage,
                drive,
            ) as (session, move):
                if running:
                    session.send(live=True)
                    undo.callback(self._start, found, instance, network_info)
                self.power_off(instance, timeout, retry_interval)
                session.send(live=False)
                session.commit()
            self.unplug_vifs(instance, network_info)
            undo.pop_all()
        return move.to_text()

    def _take_in(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        move: transfer.Move,
        network_info: network_model.NetworkInfo,
        image_meta: objects.ImageMeta,
        power_on: bool,
        wired: contextlib.AbstractContextManager[None],
    ) -> None:
        """Make an instance of what another host sent; that one keeps its own for now.

        What fails keeps what there is of the instance here, and can be done again.

        :param wired: wires its ports
        """
        rules = self._rules()
        most = limits.instance_limits(instance, rules)
        self._enforcement.check_possible(most)
        with contextlib.ExitStack() as undo:
            undo.callback(self.unplug_vifs, instance, network_info)
            try:
                container_id, resumed = self._find(instance).id, True
            except nova_exception.InstanceNotFound:
                if move.drive:
                    drive = drives.folder(self._node, instance.uuid)
                    transfer.adopt_drive(self._data_root, instance.uuid, move, drive)
                image = self._engine.inspect_image(move.image_id)
                asked = self._lxcfs.look()
                container = self._container_spec(instance, image_meta, image, most, rules, asked)
                self._abandoned.sweep()
                # not _create: when the answer is lost, what has the name later has the data
                container_id, resumed = self._engine.create_container(container), False
            storage = self._engine.inspect_storage(container_id)
            transfer.adopt(self._data_root, instance.uuid, move, storage, resumed)
            self._arrivals.end(instance.uuid)
            transfer.discard(self._data_root, instance.uuid)
            with wired:
                netns.bind_container(container_id, instance.uuid)
            if power_on:
                self._start_first(instance, container_id, network_info)
            else:
                vifs.silence_vifs(instance, network_info)
            undo.pop_all()

    def _find_whole(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
    ) -> ContainerDetail:
        """Return the instance's container, after an arrival that was cut off is finished."""
        said = self._arrivals.get(instance.uuid)
        move = transfer.read_move(said) if said else None
        if move is not None:
            LOG.info("Its arrival from another host was cut off: finishing it", instance=instance)
            # without a wait for Neutron's word, which can't come while nova-compute starts
            wired = self._wired(instance, network_info)
            self._take_in(context, instance, move, network_info, instance.image_meta, False, wired)
        return self._find(instance)

    def _finish_cut_off(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Do what ``finish_migration`` had not done, and its caller."""
        try:
            found = self._find_whole(instance._context, instance, network_info)
            if moves.runs_after(instance) and _power_state(found) in _ENDED_STATES:
                self._start(found, instance, network_info)
                # what plugs its ports next must not take it for stopped
                self._listing.servers()
            moves.set_finished(instance)
        except (nova_exception.NovaException, OSError) as error:
            # Nova asks for every server when it starts, and would stop at this one
            LOG.error("Its move to this host is not finished: %s", error, instance=instance)

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
        move = self._copies.fetch(instance.uuid, self._data_root) if evacuate else None
        if move is None:
            raise NotImplementedError
        instance.task_state = task_states.REBUILD_SPAWNING
        instance.save(expected_task_state=[task_states.REBUILDING])
        ports = network_info if network_info is not None else network_model.NetworkInfo()
        if configdrive.required(instance):
            self._write_drive(instance, ports, injected_files, admin_password)
        self._arrivals.begin(instance.uuid, move.to_text())
        plugged = self._plugged(instance, ports)
        self._take_in(context, instance, move, ports, image_meta, True, plugged)

    def cleanup_lingering_instance_resources(self, instance: objects.Instance) -> bool:
        """Remove what a deleted instance has here, although it was on another host.

        A move was cut off, as by the end of nova-compute, and Nova asks both of its hosts.
        """
        ports = instance.get_network_info() or network_model.NetworkInfo()
        self._remove(instance._context, instance, ports)
        transfer.discard(self._data_root, instance.uuid)
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
            found = self._find(instance)
        except nova_exception.InstanceNotFound as error:
            raise nova_exception.InstanceNotRunning(instance_id=instance.uuid) from error
        update_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD)
        with self._images.snapshot(found) as image:
            update_task_state(
                task_state=task_states.IMAGE_UPLOADING,
                expected_state=task_states.IMAGE_PENDING_UPLOAD,
            )
            self._images.upload(context, image_id, image)

    def manage_image_cache(
        self, context: nova_context.RequestContext, all_instances: Sequence[objects.Instance]
    ) -> None:
        """Remove images that no instance uses, by the options of ``[image_cache]``."""
        ImageCache(self._engine).update(context, all_instances)

    def cache_image(self, context: nova_context.RequestContext, image_id: str) -> bool:
        """Have an image ready before a server needs it; tell whether it had to be loaded."""
        return self._images.cache(context, image_id)

    # -- network -------------------------------------------------------------------------------

    def plug_vifs(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Wire every VIF that is not wired; Nova asks for each instance when it starts.

        The VIFs of one that does not run are there, but silent. A move to this host that was cut
        off is finished.
        """
        if moves.is_cut_off(instance):
            self._finish_cut_off(instance, network_info)
        self._wire(instance, network_info)
        server = self._listing.recent_servers().get(instance.uuid)
        if server is not None and _power_state(server) in _SILENT_STATES:
            vifs.silence_vifs(instance, network_info)
        elif server is not None:
            try:
                self._enforce(instance, self._find(instance), network_info)
            except (exception.EngineError, exception.InvalidLimits, exception.LimitsNotKept) as e:
                # Nova asks for every server when it starts, and would stop at this one
                LOG.error("The limits are not kept: %s", e, instance=instance)

    def _enforce(
        self,
        instance: objects.Instance,
        found: ContainerDetail,
        network_info: network_model.NetworkInfo,
    ) -> None:
        """Hold an instance to the limits of its present flavor."""
        self._enforcement.enforce(
            instance.uuid,
            found,
            limits.instance_limits(instance, self._rules()),
            _device_pairs(instance, network_info),
        )

    def _wire(self, instance: objects.Instance, ports: network_model.NetworkInfo) -> None:
        self._make_owned(instance)
        vifs.plug_vifs(instance, ports)

    def _wired(
        self, instance: objects.Instance, ports: network_model.NetworkInfo
    ) -> contextlib.AbstractContextManager[None]:
        self._make_owned(instance)
        return vifs.plugged_vifs(instance, ports)

    def _make_owned(self, instance: objects.Instance) -> None:
        if self._id_maps is not None:
            netns.create_owned_namespace(instance.uuid, self._id_maps.users, self._id_maps.groups)

    def _wire_anew(self, instance: objects.Instance, ports: network_model.NetworkInfo) -> None:
        vifs.replug_vifs(instance, ports)
        # the switch polices a new port as its own database says: not at all
        self._enforcement.sweep()

    def _plugged(
        self, instance: objects.Instance, ports: network_model.NetworkInfo
    ) -> contextlib.AbstractContextManager[None]:
        return plugging.plugged(self.virtapi, instance, ports, self._wired, self._wire_anew)

    def unplug_vifs(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Unwire all VIFs and remove the instance's network namespace; absent is fine."""
        with attachments.locked(instance.uuid):
            try:
                vifs.unplug_vifs(instance, network_info)
            finally:
                netns.delete_namespace(instance.uuid)

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
        with attachments.locked(instance.uuid), contextlib.ExitStack() as undo:
            found = self._find(instance)
            now = attachments.read_instance(context, instance.uuid)
            before = attachments.without_port(now.get_network_info(), vif)
            after = attachments.with_port(now.get_network_info(), vif)
            attachments.record_names(now, after)
            now.device_metadata = tags.device_metadata(context, now, after)
            now.save()
            undo.callback(self._plug, now, before, found)
            undo.callback(vifs.unplug_vifs, now, [vif])
            self._plug(now, after, found)
            undo.pop_all()
            self._refresh_etc(found, now, before, after)

    def detach_interface(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        vif: network_model.VIF,
    ) -> None:
        """Unwire one port of an instance; the others keep their names. Absent is fine.

        :raises InstanceNotFound: there is no container any more, whose other ports it would wire
        """
        with attachments.locked(instance.uuid):
            vifs.unplug_vifs(instance, [vif])
            found = self._find(instance)
            now = attachments.read_instance(context, instance.uuid)
            before = attachments.with_port(now.get_network_info(), vif)
            after = attachments.without_port(now.get_network_info(), vif)
            attachments.record_names(now, after)
            now.device_metadata = tags.device_metadata(context, now, after)
            now.save()
            # the default route may have been the port's
            self._plug(now, after, found)
            self._refresh_etc(found, now, before, after)

    def inject_network_info(
        self, instance: objects.Instance, nw_info: network_model.NetworkInfo
    ) -> None:
        """Make the devices what Neutron says now: a port got or lost a fixed address."""
        with attachments.locked(instance.uuid):
            self._plug(instance, nw_info, self._find(instance))

    def _plug(
        self,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        found: ContainerDetail,
    ) -> None:
        self._wire(instance, network_info)
        if _power_state(found) in _SILENT_STATES:
            vifs.silence_vifs(instance, network_info)
        else:
            self._enforce(instance, found, network_info)

    def _refresh_etc(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        before: network_model.NetworkInfo,
        after: network_model.NetworkInfo,
    ) -> None:
        """Bring hosts and resolv.conf up to date where they are still as the driver wrote them."""
        old, new = _etc_files(instance, before), _etc_files(instance, after)
        try:
            changed = {
                f"/etc/{name}": content
                for name, content in new.items()
                if content != old.get(name)
                and (self._engine.read_file(found.id, f"/etc/{name}") or b"") == old.get(name, b"")
            }
            if changed:
                self._engine.put_files(found.id, changed)
        except exception.EngineError as error:
            LOG.warning("/etc does not have the new ports: %s", error, instance=instance)

    # -- what is inside ------------------------------------------------------------------------

    def set_admin_password(self, instance: objects.Instance, new_pass: str) -> None:
        """Set the admin user's password; for an instance that does not run, at its next start.

        :raises SetAdminPasswdNotSupported: the image keeps no password of such an account
        """
        found = self._find(instance)
        login = guest.password_login(instance, instance.image_meta, new_pass)
        if not found.pid:
            netns.bind_container(found.id, instance.uuid, login=asdict(login))
        elif not interior.set_password(
            found.id, found.pid, login.user, login.password_hash, login.password_day
        ):
            raise nova_exception.SetAdminPasswdNotSupported()

    # -- what is seen of a server --------------------------------------------------------------

    def get_console_output(
        self, context: nova_context.RequestContext, instance: objects.Instance
    ) -> str:
        """Return the end of what the instance wrote to its console, a character for each byte."""
        output = self._engine.read_console(self._find(instance).id, _CONSOLE_BYTES)
        # the manager encodes it by the same rule
        return output.decode("latin-1")

    def get_serial_console(
        self, context: nova_context.RequestContext, instance: objects.Instance
    ) -> console_type.ConsoleSerial:
        """Open the instance's serial console to nova-serialproxy, unless it is open.

        :raises InstanceNotReady: it does not run
        """
        found = self._find(instance)
        if not found.pid:
            raise nova_exception.InstanceNotReady(instance_id=instance.uuid)
        kind = instance.system_metadata.get("image_os_console")
        opener = consoles.terminal_opener(self._engine, found.id, kind)
        port = self._consoles.open(instance.uuid, found.id, opener)
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
        pid = self._find(instance).pid
        return {
            "oom_kills": kills.read_kills(pid) if pid else 0,
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
        found = self._find(instance)
        counters = psutil.net_io_counters(pernic=True)
        return diagnostics.diagnostics(
            _power_state(found),
            found.started_at,
            self._engine.read_usage(found.id) if found.pid else None,
            [
                (
                    nic.mac,
                    counters[nic.host_device]._asdict() if nic.host_device in counters else None,
                )
                for nic in nics.nics_from_network_info(instance.get_network_info() or [])
            ],
            bool(instance.config_drive),
        )


def _config_drive_devices(instance: objects.Instance) -> tuple[Mount, ...]:
    if not configdrive.wants_device(instance):
        return ()
    return (Mount(drives.device_link(instance.uuid), configdrive.DEVICE),)


def _device_pairs(
    instance: objects.Instance, network_info: network_model.NetworkInfo
) -> tuple[tuple[str, str], ...]:
    """Return the host end and the guest end of each port."""
    names = nics.device_names(network_info, attachments.recorded_names(instance))
    return tuple((nics.host_device_name(vif), names[vif["id"]]) for vif in network_info)


def _power_state(server: Container | ContainerDetail) -> int:
    return POWER_STATES.get(server.status, power_state.NOSTATE)


def _etc_files(
    instance: objects.Instance, network_info: network_model.NetworkInfo
) -> dict[str, bytes]:
    return guest.etc_files(
        instance.uuid,
        instance.hostname or instance.uuid,
        CONF.api.dhcp_domain,
        [str(ip["address"]) for ip in network_info.fixed_ips()],
        nics.dns_from_network_info(network_info),
    )


def _refuse_disks(instance: objects.Instance, block_device_info: dict[str, Any] | None) -> None:
    """Refuse what would be left out silently: volumes and ephemeral disks."""
    asked = {
        "volumes": driver.block_device_info_get_mapping(block_device_info),
        "an ephemeral disk": instance.flavor.ephemeral_gb,
    }
    for thing, wanted in asked.items():
        if wanted:
            raise exception.StartFailed(
                instance_uuid=instance.uuid, reason=f"the Docker driver does not provide {thing}"
            )
