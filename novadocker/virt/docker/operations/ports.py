# SPDX-License-Identifier: Apache-2.0
"""The ports of an instance: wiring, the wait for Neutron, attachment and detachment, limits."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import oslo_messaging
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.compute import instance_actions
from nova.network import model as network_model
from oslo_log import log as logging

from novadocker import exception, privsep
from novadocker.conf import CONF
from novadocker.virt.docker.containers import servers
from novadocker.virt.docker.guest import identity
from novadocker.virt.docker.limits import flavor as flavor_limits
from novadocker.virt.docker.migration.nova_records import CutOffEvent
from novadocker.virt.docker.model import ContainerDetail
from novadocker.virt.docker.network import device_names, neutron, nic
from novadocker.virt.docker.operations.interrupted import DIED
from novadocker.virt.docker.operations.services import Services

LOG = logging.getLogger(__name__)

_NO_ANSWER = (
    exception.NeutronUnavailable,
    exception.EngineUnavailable,
    oslo_messaging.MessagingException,
)

_ACTIONS = (instance_actions.ATTACH_INTERFACE, instance_actions.DETACH_INTERFACE)


@dataclass(frozen=True)
class _Restored:
    """The ports of an instance at the start of nova-compute.

    :ivar begun: the attachment or detachment during which an earlier nova-compute died
    """

    ports: network_model.NetworkInfo
    begun: tuple[CutOffEvent, ...]


class Ports:
    """The ports of the instances of one host."""

    def __init__(self, services: Services, virtapi: Any) -> None:
        self._services = services
        self._network = services.network
        self._neutron = services.neutron
        self._virtapi = virtapi
        self._restored: dict[str, _Restored] = {}

    def wire(
        self,
        instance: objects.Instance,
        ports: network_model.NetworkInfo,
        keep_own: bool = False,
    ) -> None:
        """Create the instance's network namespace and devices, and plug its ports. Idempotent.

        :param keep_own: True if addresses and routes stay that the tenant added (CAP_NET_ADMIN);
            a server that starts has only Neutron's, like a virtual machine
        :raises PlugFailed: names the port
        """
        self._create_namespace(instance, ports, starts=not keep_own)
        self._network.plug_vifs(instance, ports, keep_own)

    def wired(
        self, instance: objects.Instance, ports: network_model.NetworkInfo
    ) -> contextlib.AbstractContextManager[None]:
        """Wire an instance while a block runs; its namespaces and ports exist when the block ends.

        Whether the instance has ids of its own, which its containers get, is known only then.
        """
        create = partial(self._create_namespace, instance, ports, starts=True)
        return self._network.plugged_vifs(instance, ports, prepare=create)

    def plugged(
        self, instance: objects.Instance, ports: network_model.NetworkInfo
    ) -> contextlib.AbstractContextManager[None]:
        """Wire an instance while a block runs, then wait for Neutron's event for each port."""
        return neutron.plugged(self._virtapi, instance, ports, self.wired, self._wire_anew)

    def plugged_again(
        self, instance: objects.Instance, ports: network_model.NetworkInfo
    ) -> contextlib.AbstractContextManager[None]:
        """Do the same as ``plugged`` for an instance that moves to this host.

        When nova-compute starts, it may have plugged the ports before Neutron bound them to this
        host. Then Neutron's event may come before the wait.
        """
        up = partial(self._neutron.active_ports, instance, self._services.name)
        return neutron.plugged(self._virtapi, instance, ports, self.wired, self._wire_anew, up)

    def unwire(self, instance: objects.Instance, ports: network_model.NetworkInfo) -> None:
        """Unplug all ports and delete the instance's network namespace. Idempotent.

        :param ports: if empty, the ports that the switch has
        """
        with device_names.locked(instance.uuid):
            try:
                found = ports or self._network.find_vifs(instance.uuid)
                self._network.unplug_vifs(instance, found)
            finally:
                self._services.runtime.delete_namespace(instance.uuid)

    def apply(
        self,
        instance: objects.Instance,
        ports: network_model.NetworkInfo,
        found: ContainerDetail,
    ) -> None:
        """Wire an instance, then set its limits, or set its ports down if it must be silent."""
        self.wire(instance, ports, keep_own=True)
        if servers.is_silent(found):
            self._network.silence_vifs(instance, ports)
        else:
            self.enforce(instance, found, ports)

    def enforce(
        self,
        instance: objects.Instance,
        found: ContainerDetail,
        ports: network_model.NetworkInfo,
    ) -> None:
        """Set the limits of the instance's present flavor."""
        self._services.enforcement.enforce(
            instance.uuid,
            found,
            flavor_limits.instance_limits(instance, self._services.rules(instance)),
            device_pairs(instance, ports),
        )

    def restore(self, instance: objects.Instance, ports: network_model.NetworkInfo) -> None:
        """Wire an instance and set its limits when nova-compute starts.

        A failure to set limits, or the ports of a stopped instance down, is only logged, because
        nova-compute calls this for every instance when it starts and would not start after an
        exception other than PlugFailed.

        :raises PlugFailed: names the port
        :raises EngineUnavailable: the engine does not answer
        """
        # A request that this nova-compute takes later is not cut off, so the events are read now.
        begun = self._services.nova_records.cut_off_events(
            instance.uuid, self._services.name, _ACTIONS
        )
        self._restored[instance.uuid] = _Restored(ports, begun)
        self.wire(instance, ports, keep_own=True)
        server = self._services.server_list.recent_servers().get(instance.uuid)
        if server is not None and servers.is_silent(server):
            try:
                self._network.silence_vifs(instance, ports)
            except (OSError, *privsep.UNANSWERED) as error:
                LOG.error("Failed to set the ports down: %s", error, instance=instance)
        elif server is not None:
            try:
                self.enforce(instance, self._services.find(instance), ports)
            except exception.EngineUnavailable:
                raise
            except (nova_exception.NovaException, OSError, *privsep.UNANSWERED) as error:
                LOG.error("Failed to set the limits of the instance: %s", error, instance=instance)

    def follow_neutron(self) -> None:
        """Apply the attachments and detachments during which nova-compute died.

        At its start, nova-compute wires the ports of Nova's cache. If it died between a request to
        Neutron and the update of the cache, the cache lacks the port, or still has it. Compares
        each instance with Neutron once after the start. After an exception, the next call goes on
        with the other instances and tries this one again.

        :raises NeutronUnavailable: Neutron does not answer
        :raises EngineUnavailable: the engine does not answer
        :raises MessagingException: Nova's conductor does not answer
        """
        if not self._restored:
            return
        bound = self._neutron.bound_ports(self._services.name)
        while self._restored:
            instance_uuid = next(iter(self._restored))
            before = self._restored.pop(instance_uuid)
            here = bound.get(instance_uuid, frozenset())
            try:
                followed = here == _ids(before.ports) or self._followed(instance_uuid, before.ports)
                for event in before.begun:
                    self._end(event, before.ports, here, followed)
            except nova_exception.InstanceNotFound:
                LOG.debug("Instance %s was deleted meanwhile", instance_uuid)
            except _NO_ANSWER:
                self._restored[instance_uuid] = before
                raise

    def attach(
        self, context: nova_context.RequestContext, instance: objects.Instance, vif: Any
    ) -> None:
        """Wire one more port of an instance; the other ports stay as they are.

        The instance need not run.

        :raises PlugFailed: the port could not be wired and was removed again
        """
        with device_names.locked(instance.uuid), contextlib.ExitStack() as undo:
            found = self._services.find(instance)
            now = self._services.read_instance(context, instance.uuid)
            before = device_names.without_port(now.get_network_info(), vif)
            after = device_names.with_port(now.get_network_info(), vif)
            self._record(context, now, after)
            undo.callback(self.apply, now, before, found)
            undo.callback(self._network.unplug_vifs, now, [vif])
            self.apply(now, after, found)
            undo.pop_all()
            self._refresh_etc(found, now, before, after)

    def detach(
        self, context: nova_context.RequestContext, instance: objects.Instance, vif: Any
    ) -> None:
        """Unplug one port of an instance; the other ports keep their device names. Idempotent.

        :raises ContainerLost: the container does not exist, so the other ports cannot be wired
        """
        with device_names.locked(instance.uuid):
            self._network.unplug_vifs(instance, [vif])
            found = self._services.find(instance)
            now = self._services.read_instance(context, instance.uuid)
            before = device_names.with_port(now.get_network_info(), vif)
            after = device_names.without_port(now.get_network_info(), vif)
            self._record(context, now, after)
            # The default route may have used the detached port, so the other ports are wired again.
            self.apply(now, after, found)
            self._refresh_etc(found, now, before, after)

    def _followed(self, instance_uuid: str, before: network_model.NetworkInfo) -> bool:
        """Do the same as ``_follow``; log a failure that is the instance's own, and return False.

        :raises InstanceNotFound: the instance or its container does not exist
        """
        try:
            self._follow(instance_uuid, before)
        except (nova_exception.InstanceNotFound, *_NO_ANSWER):
            raise
        except (nova_exception.NovaException, OSError, *privsep.UNANSWERED) as error:
            LOG.error(
                "Failed to apply the ports that Neutron has for instance %s; reboot the "
                "instance with --hard: %s",
                instance_uuid,
                error,
            )
            return False
        return True

    def _end(
        self,
        event: CutOffEvent,
        before: network_model.NetworkInfo,
        here: Set[str],
        followed: bool,
    ) -> None:
        """Record the result of an attachment or a detachment during which nova-compute died.

        The action does not name its port, so a detachment may have been done before Nova's cache
        was read, or not at all.

        :param before: the ports of Nova's cache at the start of nova-compute
        :param here: the ports that Neutron has bound to this host
        :param followed: True if the instance has these ports
        """
        records = self._services.nova_records
        if event.action == instance_actions.ATTACH_INTERFACE:
            # Nova binds the port, then records it, and then writes the cache.
            begun = records.ports_since(event.instance_uuid, event.start_time)
            done = bool(here & begun or here - _ids(before))
        else:
            done = not _ids(before) <= here
        ports = ", ".join(sorted(here)) or "none"
        unknown = event.action == instance_actions.DETACH_INTERFACE and not done
        died = f"{DIED}, which may be complete" if unknown else DIED
        records.end_event(
            event, None if done and followed else f"{died}; the ports of the instance: {ports}"
        )

    def _follow(self, instance_uuid: str, before: network_model.NetworkInfo) -> None:
        """Replace the ports of an instance by Neutron's, in Nova's cache and in the container.

        :raises InstanceNotFound: the instance or its container does not exist
        """
        context = nova_context.get_admin_context()
        with device_names.locked(instance_uuid):
            now = self._services.read_instance(context, instance_uuid)
            if now.host != self._services.name:
                return
            after = self._neutron.refresh_ports(context, now)
            if _ids(after) == _ids(before):
                return
            found = self._services.find(now)
            LOG.info(
                "Replacing ports %s by Neutron's ports %s",
                sorted(_ids(before)),
                sorted(_ids(after)),
                instance=now,
            )
            gone = [vif for vif in before if vif["id"] not in _ids(after)]
            self._network.unplug_vifs(now, gone)
            self._record(context, now, after)
            self.apply(now, after, found)
            self._refresh_etc(found, now, before, after)

    def _record(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        ports: network_model.NetworkInfo,
    ) -> None:
        """Save the device names and the tags of only these ports in Nova's database."""
        device_names.record_names(instance, ports)
        instance.device_metadata = self._services.device_metadata(context, instance, ports)
        instance.save()

    def _create_namespace(
        self, instance: objects.Instance, ports: network_model.NetworkInfo, starts: bool
    ) -> None:
        """Create the instance's namespaces of its present flavor.

        :param starts: False if the server does not start now; it then has ports even if it may not
            start with the ids that it has
        :raises PlugFailed: a namespace cannot be created
        """
        services, runtime, maps = self._services, self._services.runtime, self._services.id_maps
        spaces = services.try_user_namespaces() if starts else services.user_namespaces
        try:
            if services.own_user_namespace(instance):
                if spaces.impossible and not runtime.has_own_ids(instance.uuid):
                    if starts:
                        raise OSError(spaces.impossible)
                    return
                runtime.create_own_namespace(instance.uuid, spaces.ids.start, len(spaces.ids))
            elif maps is not None:
                services.namespaces.create_owned_namespace(instance.uuid, maps.users, maps.groups)
            elif runtime.has_own_ids(instance.uuid):
                runtime.leave_own_namespace(instance.uuid)
        except (exception.InvalidLimits, OSError, ValueError, *privsep.UNANSWERED) as error:
            raise exception.PlugFailed(
                port_id=", ".join(vif["id"] for vif in ports),
                reason=f"the network namespace cannot be created: {error}",
            ) from error

    def _wire_anew(self, instance: objects.Instance, ports: network_model.NetworkInfo) -> None:
        self._network.replug_vifs(instance, ports)
        # The switch removes the rates of a new port, because its database has none.
        self._services.enforcement.sweep()

    def _refresh_etc(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        before: network_model.NetworkInfo,
        after: network_model.NetworkInfo,
    ) -> None:
        """Update hosts and resolv.conf if they still have the content that the driver wrote.

        Does nothing for a stopped instance that boots from a volume, which is not mounted.
        """
        if not found.pid and self._services.root_volumes.boots_from_volume(instance.uuid):
            return
        old, new = etc_files(instance, before), etc_files(instance, after)
        try:
            changed = {
                name: content
                for name, content in new.items()
                if content != old.get(name)
                and (self._read_etc(found, name) or b"") == old.get(name, b"")
            }
            if changed:
                self._put_etc(found, changed)
        except (
            exception.EngineUnavailable,
            exception.EngineError,
            OSError,
            *privsep.UNANSWERED,
        ) as error:
            LOG.warning(
                "Failed to update the files in /etc for the ports: %s", error, instance=instance
            )

    def _read_etc(self, found: ContainerDetail, name: str) -> bytes | None:
        if found.pid:
            # The engine knows only the image of a server on a volume. And for a server with a user
            # namespace of its own, it cannot create the mount points that it makes for an archive.
            try:
                return self._services.guest_files.read_etc_file(found.id, found.pid, name)
            except OSError as error:
                # The tenant may have put something else in its place.
                LOG.info("Failed to read /etc/%s of container %s: %s", name, found.name, error)
                return None
        return self._services.engine.read_file(found.id, f"/etc/{name}")

    def _put_etc(self, found: ContainerDetail, files: Mapping[str, bytes]) -> None:
        if not found.pid:
            self._services.engine.put_files(
                found.id, {f"/etc/{name}": content for name, content in files.items()}
            )
            return
        # The engine cannot create files of the users in a user namespace.
        for name, content in files.items():
            self._services.guest_files.put_etc_file(found.id, found.pid, name, content)


def _ids(ports: network_model.NetworkInfo) -> set[str]:
    return {vif["id"] for vif in ports}


def device_pairs(
    instance: objects.Instance, ports: network_model.NetworkInfo
) -> tuple[tuple[str, str], ...]:
    """Return the host end and the guest end of each port."""
    names = nic.device_names(ports, device_names.recorded_names(instance))
    return tuple((nic.host_device_name(vif), names[vif["id"]]) for vif in ports)


def etc_files(instance: objects.Instance, ports: network_model.NetworkInfo) -> dict[str, bytes]:
    """Return the content of the network's files in ``/etc`` of an instance, by name."""
    return identity.etc_files(
        instance.uuid,
        instance.hostname or instance.uuid,
        CONF.api.dhcp_domain,
        [str(ip["address"]) for ip in ports.fixed_ips()],
        nic.dns_from_network_info(ports) or CONF.docker.default_name_servers,
    )
