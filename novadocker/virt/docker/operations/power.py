# SPDX-License-Identifier: Apache-2.0
"""An instance's processes: started, stopped, frozen; wired and held to its limits meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent import futures

from nova import objects
from nova.compute import power_state, vm_states
from nova.network import model as network_model
from oslo_log import log as logging

from novadocker import exception
from novadocker.conf import CONF
from novadocker.linux.threads import meanwhile
from novadocker.privsep.guest import runtime
from novadocker.virt.docker.containers import lifecycle, rescue
from novadocker.virt.docker.limits import flavor as flavor_limits
from novadocker.virt.docker.model import Container, ContainerDetail
from novadocker.virt.docker.network import vif
from novadocker.virt.docker.operations.config_drive import ConfigDrives
from novadocker.virt.docker.operations.ports import Ports, device_pairs
from novadocker.virt.docker.operations.services import Node

# what the manager passes to power_off; a soft reboot gets no figures of its own
_SHUTDOWN_RETRY_SECONDS = 10


class Power:
    """The processes of the instances of one host."""

    def __init__(self, node: Node, ports: Ports, config_drives: ConfigDrives) -> None:
        self._node = node
        self._ports = ports
        self._drives = config_drives

    def start(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        ports: network_model.NetworkInfo,
    ) -> None:
        """Wire and start an instance; one that runs keeps running."""
        if rescue.is_stand_in(found) and instance.vm_state != vm_states.RESCUED:
            self._node.rescue_ends.end(instance.uuid)
            found = self._node.find(instance)
        if rescue.is_stand_in(found):
            rescue.prepare(self._node.engine, instance.uuid)
        self._ports.wire(instance, ports)
        runtime.bind_container(found.id, instance.uuid)
        self._node.lxcfs.await_mended()
        self._drives.attach(instance)
        self._run(instance, found.id, ports)

    def start_first(
        self, instance: objects.Instance, container_id: str, ports: network_model.NetworkInfo
    ) -> None:
        """Start a container that is new and wired.

        :raises StartFailed: it does not run
        """
        try:
            self._drives.attach(instance)
            self._run(instance, container_id, ports)
        except exception.EngineError as error:
            raise exception.StartFailed(
                instance_uuid=instance.uuid, reason=error.format_message()
            ) from error

    def stop_processes(self, found: ContainerDetail, timeout: float) -> None:
        """Stop a container's processes within ``timeout`` seconds, to start them right again."""
        lifecycle.stop(self._node.engine, found.id, timeout, _SHUTDOWN_RETRY_SECONDS)

    def stop(self, instance: objects.Instance, timeout: float, retry_interval: float) -> None:
        """Stop an instance within ``timeout`` seconds; nobody answers for it any more."""
        self._node.consoles.close(instance.uuid)
        lifecycle.stop(self._node.engine, self._node.find(instance).id, timeout, retry_interval)
        self._drives.detach(instance)
        vif.silence_vifs(instance, instance.get_network_info())

    def restart(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        ports: network_model.NetworkInfo,
        timeout: float,
    ) -> None:
        """Stop an instance within ``timeout`` seconds and start it."""
        self._node.consoles.close(instance.uuid)
        self.stop_processes(found, timeout)
        self.start(found, instance, ports)

    def freeze(self, instance: objects.Instance) -> None:
        """Freeze an instance's processes; nobody answers for them meanwhile."""
        self._node.engine.pause_container(self._node.find(instance).id)
        vif.silence_vifs(instance, instance.get_network_info())

    def thaw(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        ports: network_model.NetworkInfo,
    ) -> None:
        """Let an instance's processes go on."""
        self._node.engine.unpause_container(found.id)
        self._ports.apply(instance, ports, self._node.find(instance))

    def resume(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        ports: network_model.NetworkInfo,
    ) -> None:
        """Let a frozen instance go on; one that lost its processes meanwhile is started."""
        if found.status == "paused":
            self.thaw(found, instance, ports)
        else:
            self.start(found, instance, ports)

    def _run(
        self, instance: objects.Instance, container_id: str, ports: network_model.NetworkInfo
    ) -> None:
        enforcement = self._node.enforcement
        most = flavor_limits.instance_limits(instance, self._node.rules())
        pairs = device_pairs(instance, ports)
        with (
            # the VIFs are there before the process is
            meanwhile(enforcement.limit_ports, instance.uuid, most, pairs),
            meanwhile(vif.announce_vifs, instance, ports),
            lifecycle.started(self._node.engine, container_id, CONF.docker.start_grace) as found,
        ):
            enforcement.limit_container(instance.uuid, found, most, pairs)


LOG = logging.getLogger(__name__)

# more at once take no less time in all: the engine's starts keep the CPUs busy
_AT_ONCE = 4


def interrupted(
    instances: Iterable[objects.Instance], servers: Mapping[str, Container]
) -> list[objects.Instance]:
    """Return those that Nova knows as running and nothing else, and that have no process: pure.

    What else Nova's manager resumes, such as what was being rebooted, is left to it.
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
    """Start instances, a few at a time; one that fails is told of and does not stop the others."""
    with futures.ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="startup") as pool:
        begun = [(instance, pool.submit(start, instance)) for instance in instances]
    for instance, started in begun:
        if error := started.exception():
            LOG.warning("It did not come back with its host: %s", error, instance=instance)
