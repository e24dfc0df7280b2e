# SPDX-License-Identifier: Apache-2.0
"""``DockerDriver``: what Nova calls, as recipes of the other modules' verbs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import os_resource_classes as orc
import psutil
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.compute import power_state
from nova.compute import provider_tree as placement
from nova.network import model as network_model
from nova.virt import driver, hardware
from oslo_log import log as logging

from novadocker import exception
from novadocker.conf import CONF
from novadocker.virt.docker import (
    diagnostics,
    guest,
    inventory,
    lifecycle,
    limits,
    netns,
    nics,
    plugging,
    spec,
    vifs,
)
from novadocker.virt.docker import host as host_facts
from novadocker.virt.docker.abandoned import AbandonedContainers
from novadocker.virt.docker.engine import Engine
from novadocker.virt.docker.images import ImageStore
from novadocker.virt.docker.listing import Listing
from novadocker.virt.docker.model import Container, ContainerDetail, ContainerSpec

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

_SILENT_STATES = (power_state.SHUTDOWN, power_state.CRASHED)

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
    }

    def __init__(self, virtapi: Any) -> None:
        """Create the driver; nothing is asked of the engine yet."""
        super().__init__(virtapi)
        self._engine = Engine(
            CONF.docker.api_url, CONF.docker.api_timeout, CONF.docker.image_load_timeout
        )
        self._listing = Listing(self._engine)
        self._abandoned = AbandonedContainers(self._engine)
        self._node = CONF.host

    # -- the host -----------------------------------------------------------------------------

    def init_host(self, host: str) -> None:
        """Check that this host can run servers.

        :raises EngineUnavailable: the engine does not answer; the service manager tries again
        :raises InvalidConfiguration: the runtime shim is not registered
        """
        self._node = host
        info = self._engine.info()
        if CONF.docker.runtime not in info.runtimes:
            raise exception.InvalidConfiguration(
                reason=f"the engine has no runtime {CONF.docker.runtime!r}; register the shim "
                "under 'runtimes' in daemon.json and reload the engine"
            )
        if not info.live_restore:
            LOG.warning(
                "live-restore is off: all servers stop when the engine does; set it in daemon.json"
            )
        self._images = ImageStore(self._engine, host_facts.architecture(info))
        vifs.initialize()

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
        info = self._engine.info()
        return host_facts.available_resource(nodename, info, host_facts.read_resources(info))

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
        ratios = self._get_allocation_ratios(known)
        provider_tree.update_inventory(
            nodename, inventory.inventory(host_facts.read_resources(info), ratios, self._reserved())
        )
        provider_tree.add_traits(nodename, host_facts.TRAIT)

    def _reserved(self) -> dict[str, int]:
        return {
            orc.VCPU: CONF.reserved_host_cpus,
            orc.MEMORY_MB: CONF.reserved_host_memory_mb,
            orc.DISK_GB: self._get_reserved_host_disk_gb_from_config(),
        }

    # -- which servers there are ---------------------------------------------------------------

    def list_instances(self) -> list[str]:
        """Return the names of this host's instances, running or not."""
        return [server.labels[spec.LABEL_NAME] for server in self._listing.servers().values()]

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
            found = self._engine.inspect_container(spec.container_name(instance.uuid))
        except exception.ContainerNotFound as error:
            raise nova_exception.InstanceNotFound(instance_id=instance.uuid) from error
        if not spec.owned(found.name, found.labels):
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
        """Create the instance's container, wire it, wait for Neutron, start it.

        What can fail without the network comes before the first look at ``network_info``, which
        waits until Neutron has allocated the ports.

        :raises ImageUnacceptable: the image can't be booted on any host
        :raises BuildAbortException: its command does not run, or Neutron reports no port up
        """
        _refuse_disks(instance, block_device_info)
        image = self._images.ensure(context, image_meta)
        container = spec.container_spec(
            instance,
            image_meta,
            image,
            limits.limits_from_flavor(instance.flavor, CONF.docker.default_pids_limit),
            runtime=CONF.docker.runtime,
            console_log_max_mb=CONF.docker.console_log_max_mb,
        )
        container_id = self._create(container)
        with contextlib.ExitStack() as undo:
            undo.callback(self._abandoned.remove, container_id)
            ports = network_info if network_info is not None else network_model.NetworkInfo()
            vifs.check_supported(ports)
            undo.callback(self.unplug_vifs, instance, ports)
            with plugging.wait_for_plugged(self.virtapi, instance, ports):
                vifs.plug_vifs(instance, ports)
                if injected_files:
                    self._engine.put_files(container_id, dict(injected_files))
                netns.bind_container(container_id, instance.uuid, _etc_files(instance, ports))
            if power_on:
                self._start_first(instance, container_id)
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
        """Remove the instance's container and network; absent is fine."""
        self._engine.remove_container(spec.container_name(instance.uuid))
        self.cleanup(context, instance, network_info, block_device_info)

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

    def _create(self, container: ContainerSpec) -> str:
        self._abandoned.sweep()
        try:
            return self._engine.create_container(container)
        except exception.EngineUnavailable:
            self._abandoned.suspect(container.name)
            raise

    def _start_first(self, instance: objects.Instance, container_id: str) -> None:
        try:
            lifecycle.start(self._engine, container_id, CONF.docker.start_grace)
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
        self._start(self._find(instance), instance, network_info)

    def power_off(
        self, instance: objects.Instance, timeout: int = 0, retry_interval: int = 0
    ) -> None:
        """Stop an instance within ``timeout`` seconds; a stopped one is fine."""
        lifecycle.stop(self._engine, self._find(instance).id, timeout, retry_interval)
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
        found = self._find(instance)
        lifecycle.stop(self._engine, found.id, timeout, _SHUTDOWN_RETRY_SECONDS)
        self._start(found, instance, network_info)

    def pause(self, instance: objects.Instance) -> None:
        """Freeze the instance's processes."""
        self._engine.pause_container(self._find(instance).id)

    def unpause(self, instance: objects.Instance) -> None:
        """Let the instance's processes go on."""
        self._engine.unpause_container(self._find(instance).id)

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
        found = self._find(instance)
        if found.status == "paused":
            self._engine.unpause_container(found.id)
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

    def _start(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
    ) -> None:
        vifs.plug_vifs(instance, network_info)
        netns.bind_container(found.id, instance.uuid)
        lifecycle.start(self._engine, found.id, CONF.docker.start_grace)

    # -- network -------------------------------------------------------------------------------

    def plug_vifs(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Wire every VIF that is not wired; Nova asks for each instance when it starts.

        The VIFs of one that does not run are there, but silent.
        """
        vifs.plug_vifs(instance, network_info)
        server = self._listing.recent_servers().get(instance.uuid)
        if server is not None and _power_state(server) in _SILENT_STATES:
            vifs.silence_vifs(instance, network_info)

    def unplug_vifs(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Unwire all VIFs and remove the instance's network namespace; absent is fine."""
        try:
            vifs.unplug_vifs(instance, network_info)
        finally:
            netns.delete_namespace(instance.uuid)

    # -- what is seen of a server --------------------------------------------------------------

    def get_console_output(
        self, context: nova_context.RequestContext, instance: objects.Instance
    ) -> str:
        """Return the end of what the instance wrote to its console, a character for each byte."""
        output = self._engine.read_console(self._find(instance).id)[-_CONSOLE_BYTES:]
        # the manager encodes it by the same rule
        return output.decode("latin-1")

    def get_diagnostics(self, instance: objects.Instance) -> dict[str, Any]:
        """Return the diagnostics in the free form that API versions before 2.48 show."""
        return {
            name: value
            for name, value in self.get_instance_diagnostics(instance)
            .obj_to_primitive()["nova_object.data"]
            .items()
            if isinstance(value, (str, int))
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


def _power_state(server: Container | ContainerDetail) -> int:
    return POWER_STATES.get(server.status, power_state.NOSTATE)


def _etc_files(
    instance: objects.Instance, network_info: network_model.NetworkInfo
) -> dict[str, bytes]:
    return guest.etc_files(
        instance.hostname or instance.uuid,
        CONF.api.dhcp_domain,
        [str(ip["address"]) for ip in network_info.fixed_ips()],
        nics.dns_from_network_info(network_info),
    )


def _refuse_disks(instance: objects.Instance, block_device_info: dict[str, Any] | None) -> None:
    """Refuse what would be left out silently: volumes, ephemeral disks, a config drive."""
    asked = {
        "volumes": driver.block_device_info_get_mapping(block_device_info),
        "an ephemeral disk": instance.flavor.ephemeral_gb,
        "a config drive": instance.config_drive,
    }
    for thing, wanted in asked.items():
        if wanted:
            raise exception.StartFailed(
                instance_uuid=instance.uuid, reason=f"the Docker driver does not provide {thing}"
            )
