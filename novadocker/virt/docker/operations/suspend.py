# SPDX-License-Identifier: Apache-2.0
"""Suspend and resume, with the memory of the processes on the disk or in RAM.

A failure at any step of a suspend to the disk leaves a frozen server whose memory is in RAM. The
order is: freeze the processes, set the ports down, write the memory, and only then kill the
processes, which do not run in between. ``privsep.guest.checkpoint`` describes the directory of the
images.
"""

from __future__ import annotations

from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.network import model as network_model
from oslo_log import log as logging

from novadocker import exception, extra_specs, privsep
from novadocker.conf import CONF
from novadocker.virt.docker.checkpoint import preflight
from novadocker.virt.docker.containers import lifecycle, rescue, servers
from novadocker.virt.docker.guest import config_drive
from novadocker.virt.docker.limits import flavor as flavor_limits
from novadocker.virt.docker.migration import nova_records
from novadocker.virt.docker.model import ContainerDetail
from novadocker.virt.docker.operations.ports import Ports
from novadocker.virt.docker.operations.power import Power
from novadocker.virt.docker.operations.services import Services

LOG = logging.getLogger(__name__)

EVENT = "docker_suspend_to_disk"
"""The event of Nova's action ``suspend`` that tells why the memory stays in RAM."""

_END_SECONDS = 30.0
_FAILURES = (OSError, *privsep.UNANSWERED)


class Suspend:
    """Suspends and resumes the instances of one host."""

    def __init__(self, services: Services, ports: Ports, power: Power) -> None:
        self._services = services
        self._ports = ports
        self._power = power

    def suspend(self, context: nova_context.RequestContext, instance: objects.Instance) -> None:
        """Freeze an instance's processes and set its ports down; write its memory to the disk.

        If the memory is to stay in RAM, or CRIU can't write it, the processes stay frozen.
        """
        asked: dict[str, str] = {}
        reason = ""
        try:
            asked = flavor_limits.asked(instance, instance.flavor, self._services.rules(instance))
        except exception.InvalidLimits as error:
            # The operator may have changed the rules since the server was built.
            reason = str(error)
        if asked.get(extra_specs.SUSPEND.name, CONF.docker.suspend) != extra_specs.DISK:
            self._power.freeze(instance)
            return
        found = self._services.find(instance)
        reason = reason or self._refusal(context, found, instance, asked)
        self._power.freeze(instance)
        reason = reason or self._save(found, instance)
        if reason:
            LOG.warning("The memory stays in RAM: %s", reason, instance=instance)
            self._services.nova_records.note(context, instance, EVENT, reason)

    def resume(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        ports: network_model.NetworkInfo,
    ) -> None:
        """Thaw a frozen instance, restore it from the disk, or start it if it has no memory.

        :raises InstanceFaultRollback: the memory can't be restored; it is kept
        """
        services = self._services
        saved = services.checkpoints.exists(services.name, instance.uuid)
        if saved and found.status == "paused":
            with nova_records.rolled_back():
                found = self._resolve(found, instance)
        if found.status == "paused":
            self._power.thaw(found, instance, ports)
        elif saved and servers.has_ended(found):
            with nova_records.rolled_back():
                self._restore(found, instance, ports)
        else:
            self._power.start(found, instance, ports)

    def _resolve(self, found: ContainerDetail, instance: objects.Instance) -> ContainerDetail:
        """Make a frozen instance that has memory on the disk have only one of them.

        :returns: its container, which has ended if the memory on the disk is the valid one
        """
        checkpoints, host = self._services.checkpoints, self._services.name
        if not checkpoints.has_ended_processes(host, instance.uuid, found.id, found.last_start):
            # The processes go on, so their memory on the disk would be wrong from now on.
            checkpoints.discard(host, instance.uuid)
            return found
        # nova-compute or its helper may have died before each process was killed.
        checkpoints.end_processes(host, instance.uuid, found.id)
        self._end(found)
        return self._services.find(instance)

    def _refusal(
        self,
        context: nova_context.RequestContext,
        found: ContainerDetail,
        instance: objects.Instance,
        asked: dict[str, str],
    ) -> str:
        """Return why an instance's memory can't be written; nothing is touched."""
        services = self._services
        devices = services.read_block_devices(context, instance)
        facts = preflight.Facts(
            status=found.status,
            rescued=rescue.is_stand_in(found),
            mapped=services.id_maps is not None or services.runtime.has_own_ids(instance.uuid),
            volumes=len(devices.get("block_device_mapping") or ()),
            drive_device=config_drive.wants_device(instance),
            asked=asked,
        )
        reason = preflight.refusal(facts)
        if reason:
            return f"the server can't be written to the disk: {reason}"
        try:
            return services.checkpoints.why_impossible(CONF.docker.criu)
        except _FAILURES as error:
            return str(error)

    def _save(self, found: ContainerDetail, instance: objects.Instance) -> str:
        """Write the memory of a frozen instance and end its processes; return why not."""
        services = self._services
        try:
            services.checkpoints.dump(
                services.name,
                instance.uuid,
                found.id,
                found.pid,
                found.last_start,
                CONF.docker.criu,
            )
            # The dump may take minutes. If the engine does not answer now, Nova takes the server
            # for active, and stops it when the engine is back.
            present = services.find(instance)
            if (present.status, present.last_start) != ("paused", found.last_start):
                return "its processes ran again while CRIU wrote them"
            services.checkpoints.end_processes(services.name, instance.uuid, found.id)
        except (nova_exception.NovaException, *_FAILURES) as error:
            return getattr(error, "strerror", None) or str(error)
        services.consoles.close(instance.uuid)
        try:
            self._end(found)
        except (exception.EngineError, exception.EngineUnavailable) as error:
            # Nothing is lost: ``resume`` ends the processes.
            LOG.warning("Failed to end the suspended processes: %s", error, instance=instance)
        return ""

    def _end(self, found: ContainerDetail) -> None:
        """Let the killed processes of a frozen container end.

        :raises EngineError: they do not end
        """
        engine = self._services.engine
        try:
            engine.unpause_container(found.id)
        except exception.EngineError as error:
            # With cgroup v2 they end while they are frozen.
            LOG.debug("Failed to thaw container %s: %s", found.name, error)
        if engine.wait_container(found.id, _END_SECONDS) is None:
            raise exception.EngineError(
                operation="to end the suspended processes", reason="they survived SIGKILL"
            )

    def _restore(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        ports: network_model.NetworkInfo,
    ) -> None:
        """Restore an instance's processes. Its ports stay down until then.

        The kernel would answer its peers that their connections do not exist.
        """
        services = self._services
        if instance.uuid not in services.marked_networks():
            # The host has restarted since.
            self._ports.wire(instance, ports)
            services.network.silence_vifs(instance, ports)
        services.runtime.bind_container(found.id, instance.uuid)
        if not services.checkpoints.restore_next(
            services.name, instance.uuid, found.id, found.last_start, CONF.docker.criu
        ):
            LOG.warning("Starting the server anew, because it ran meanwhile", instance=instance)
            self._power.start(found, instance, ports)
            return
        services.lxcfs.await_mended()
        with lifecycle.started(services.engine, found.id, CONF.docker.start_grace) as restored:
            try:
                self._ports.apply(instance, ports, restored)
                services.network.announce_vifs(instance, ports)
            except (nova_exception.NovaException, *_FAILURES):
                # Nova has the server as suspended, so it must not run. Its memory is in RAM now.
                self._power.freeze(instance)
                raise
        try:
            services.checkpoints.discard(services.name, instance.uuid)
        except _FAILURES as error:
            # The server runs. Its next stop, start or suspend deletes what is left.
            LOG.warning("Failed to delete the restored memory: %s", error, instance=instance)
