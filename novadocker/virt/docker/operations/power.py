# SPDX-License-Identifier: Apache-2.0
"""The power operations of instances, with the wiring and the limits that belong to a start."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures

from nova import exception as nova_exception
from nova import objects
from nova.compute import power_state, task_states, vm_states
from nova.network import model as network_model
from oslo_log import log as logging

from novadocker import exception, privsep
from novadocker.conf import CONF
from novadocker.linux.threads import meanwhile
from novadocker.virt.docker.containers import lifecycle, rescue, servers
from novadocker.virt.docker.limits import flavor as flavor_limits
from novadocker.virt.docker.model import Container, ContainerDetail
from novadocker.virt.docker.operations.config_drive import ConfigDrive
from novadocker.virt.docker.operations.ports import Ports, device_pairs
from novadocker.virt.docker.operations.services import Services

LOG = logging.getLogger(__name__)

# More starts at once take no less time in total, because the engine's starts keep the CPUs busy.
_AT_ONCE = 4


class Power:
    """Starts, stops, freezes and thaws the instances of one host."""

    def __init__(self, services: Services, ports: Ports, config_drive: ConfigDrive) -> None:
        self._services = services
        self._network = services.network
        self._ports = ports
        self._config_drive = config_drive

    def state(self, instance: objects.Instance, use_cache: bool) -> int:
        """Return Nova's power state of an instance; see ``DockerDriver.get_info``."""
        listing = self._services.server_list
        deleted = listing.was_deleted(instance.uuid)
        if use_cache and not deleted:
            server = listing.recent_servers().get(instance.uuid)
            if server is not None:
                return servers.power_state_of(server)
        else:
            try:
                return servers.power_state_of(self._services.find(instance))
            except exception.ContainerLost:
                pass
            except exception.ContainerHangs as error:
                # nova-compute does not start after this exception. The list waits for no container.
                LOG.warning("Taking the state from the list: %s", error, instance=instance)
                server = listing.servers().get(instance.uuid)
                if server is not None:
                    return servers.power_state_of(server)
        if deleted:
            return int(power_state.SHUTDOWN)
        raise nova_exception.InstanceNotFound(instance_id=instance.uuid)

    def start(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        ports: network_model.NetworkInfo,
    ) -> None:
        """Wire and start an instance. An instance that runs keeps running."""
        if rescue.is_stand_in(found) and instance.vm_state != vm_states.RESCUED:
            self._services.rescue_ends.end(instance.uuid)
            found = self._services.find(instance)
        if rescue.is_stand_in(found):
            rescue.prepare(self._services.engine, instance.uuid)
        self._ports.wire(instance, ports, keep_own=not servers.has_ended(found))
        self._services.runtime.bind_container(found.id, instance.uuid)
        self._services.lxcfs.await_mended()
        self._config_drive.attach(instance)
        self.forget_memory(instance)
        self._run(instance, found.id, ports)

    def forget_memory(self, instance: objects.Instance) -> None:
        """Delete the memory of a suspended instance from the disk. Does nothing if it has none.

        It would not fit the files that a new start changes.
        """
        checkpoints, host = self._services.checkpoints, self._services.name
        if checkpoints.exists(host, instance.uuid):
            checkpoints.discard(host, instance.uuid)

    def start_first(
        self, instance: objects.Instance, container_id: str, ports: network_model.NetworkInfo
    ) -> None:
        """Start a new container whose ports are wired.

        :raises ContainerHangs: the start hangs in the engine
        :raises RequestRefused: the first process ended
        :raises StartFailed: the engine cannot start the container
        """
        try:
            self._config_drive.attach(instance)
            self._run(instance, container_id, ports)
        except exception.ContainerHangs:
            # Another host may start the instance.
            raise
        except exception.EngineError as error:
            ended = isinstance(error, exception.ProcessEnded)
            failure = exception.RequestRefused if ended else exception.StartFailed
            raise failure(instance_uuid=instance.uuid, reason=error.format_message()) from error

    def stop_processes(self, found: ContainerDetail, timeout: float) -> None:
        """Stop a container's processes within ``timeout`` seconds."""
        lifecycle.stop(self._services.engine, found.id, timeout)

    def stop(self, instance: objects.Instance, timeout: float) -> None:
        """Stop an instance within ``timeout`` seconds and set its ports down. Idempotent.

        An instance is stopped if its container was deleted, or if Nova rebuilds it and it has none.

        :raises ContainerLost: the container is renamed or out of reach, so it may run
        """
        found = None
        try:
            found = self._services.find(instance)
        except exception.ContainerLost as error:
            if (
                instance.task_state != task_states.REBUILDING
                and not self._services.server_list.was_deleted(instance.uuid)
            ):
                raise
            LOG.warning("The instance is taken for stopped: %s", error, instance=instance)
        self._stop(found, instance, timeout)

    def stop_present(self, instance: objects.Instance, timeout: float) -> None:
        """Do the same as ``stop`` for an instance that may have no container. Idempotent."""
        found = None
        with contextlib.suppress(exception.ContainerLost):
            found = self._services.find(instance)
        self._stop(found, instance, timeout)

    def _stop(
        self, found: ContainerDetail | None, instance: objects.Instance, timeout: float
    ) -> None:
        self._services.consoles.close(instance.uuid)
        if found is not None:
            self.stop_processes(found, timeout)
        self.forget_memory(instance)
        self._config_drive.detach(instance)
        self._network.silence_vifs(instance, instance.get_network_info())

    def restart(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        ports: network_model.NetworkInfo,
        timeout: float,
    ) -> None:
        """Stop an instance within ``timeout`` seconds and start it."""
        self._services.consoles.close(instance.uuid)
        self.stop_processes(found, timeout)
        self.start(self._services.find(instance), instance, ports)

    def freeze(self, instance: objects.Instance) -> None:
        """Freeze an instance's processes and set its ports down."""
        self._services.engine.pause_container(self._services.find(instance).id)
        self._network.silence_vifs(instance, instance.get_network_info())

    def thaw(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        ports: network_model.NetworkInfo,
    ) -> None:
        """Thaw an instance's processes and set its ports up."""
        self._services.engine.unpause_container(found.id)
        self._ports.apply(instance, ports, self._services.find(instance))

    def start_interrupted(
        self, instances: Iterable[objects.Instance], start: Callable[[objects.Instance], None]
    ) -> None:
        """Start the instances that ran until the host went down.

        :param start: starts one of them
        :raises EngineUnavailable: the engine does not answer
        """
        start_all(interrupted(instances, self._services.server_list.servers()), start)
        # nova-compute wires the ports next and sets down the ports of servers that are not listed
        # as running, so the list is read again.
        self._services.server_list.servers()

    def _run(
        self, instance: objects.Instance, container_id: str, ports: network_model.NetworkInfo
    ) -> None:
        self._prepare_root(instance)
        enforcement = self._services.enforcement
        most = flavor_limits.instance_limits(instance, self._services.rules(instance))
        pairs = device_pairs(instance, ports)
        with (
            # The VIFs exist before the process starts.
            meanwhile(enforcement.limit_ports, instance.uuid, most, pairs),
            meanwhile(self._network.announce_vifs, instance, ports),
            lifecycle.started(
                self._services.engine, container_id, CONF.docker.start_grace
            ) as found,
        ):
            enforcement.limit_container(instance.uuid, found, most, pairs)

    def _prepare_root(self, instance: objects.Instance) -> None:
        """Check the file system of the volume that an instance boots from, unless it runs.

        :raises RequestRefused: the file system is damaged, or of another kind
        """
        try:
            if self._services.root_volumes.boots_from_volume(instance.uuid):
                self._services.root_volumes.prepare(instance.uuid)
        except (OSError, *privsep.UNANSWERED) as error:
            raise exception.RequestRefused(
                instance_uuid=instance.uuid,
                reason=f"The server cannot boot from its volume: {error}",
            ) from error


def interrupted(
    instances: Iterable[objects.Instance], servers: Mapping[str, Container]
) -> list[objects.Instance]:
    """Return the instances that were running without a task and whose process has ended; pure.

    Nova's manager resumes other instances, such as those that were being rebooted.
    """
    return [
        instance
        for instance in instances
        if instance.uuid in servers
        and servers[instance.uuid].status == "exited"
        and instance.power_state == power_state.RUNNING
        and instance.vm_state == vm_states.ACTIVE
        and instance.task_state is None
    ]


def start_all(
    instances: Iterable[objects.Instance], start: Callable[[objects.Instance], None]
) -> None:
    """Start instances, four at a time. A failure is logged and does not stop the other starts."""
    with futures.ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="startup") as pool:
        begun = [(instance, pool.submit(start, instance)) for instance in instances]
    for instance, started in begun:
        if error := started.exception():
            LOG.warning(
                "Failed to restart instance after host reboot: %s", error, instance=instance
            )
