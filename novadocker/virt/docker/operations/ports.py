# SPDX-License-Identifier: Apache-2.0
"""The ports of an instance: wired, awaited, attached, detached and held to their rates."""

from __future__ import annotations

import contextlib
from typing import Any

from nova import context as nova_context
from nova import objects
from nova.network import model as network_model
from oslo_log import log as logging

from novadocker import exception
from novadocker.conf import CONF
from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from novadocker.virt.docker.containers import servers
from novadocker.virt.docker.guest import identity
from novadocker.virt.docker.limits import flavor as flavor_limits
from novadocker.virt.docker.model import ContainerDetail
from novadocker.virt.docker.network import device_names, device_tags, neutron, nic
from novadocker.virt.docker.network import vif as network_vif
from novadocker.virt.docker.operations.services import Node

LOG = logging.getLogger(__name__)


class Ports:
    """The ports of the instances of one host."""

    def __init__(self, node: Node, virtapi: Any) -> None:
        self._node = node
        self._virtapi = virtapi

    def wire(self, instance: objects.Instance, ports: network_model.NetworkInfo) -> None:
        """Make the instance's namespace and devices what they must be."""
        self._make_owned(instance)
        network_vif.plug_vifs(instance, ports)

    def wired(
        self, instance: objects.Instance, ports: network_model.NetworkInfo
    ) -> contextlib.AbstractContextManager[None]:
        """Wire an instance while a block runs."""
        self._make_owned(instance)
        return network_vif.plugged_vifs(instance, ports)

    def plugged(
        self, instance: objects.Instance, ports: network_model.NetworkInfo
    ) -> contextlib.AbstractContextManager[None]:
        """Wire an instance while a block runs, and wait for Neutron's word at its end."""
        return neutron.plugged(self._virtapi, instance, ports, self.wired, self._wire_anew)

    def unwire(self, instance: objects.Instance, ports: network_model.NetworkInfo) -> None:
        """Unwire all ports and remove the instance's network namespace; absent is fine."""
        with device_names.locked(instance.uuid):
            try:
                network_vif.unplug_vifs(instance, ports)
            finally:
                runtime.delete_namespace(instance.uuid)

    def apply(
        self,
        instance: objects.Instance,
        ports: network_model.NetworkInfo,
        found: ContainerDetail,
    ) -> None:
        """Wire an instance and hold it to its limits; the ports of one that is silent are, too."""
        self.wire(instance, ports)
        if servers.is_silent(found):
            network_vif.silence_vifs(instance, ports)
        else:
            self.enforce(instance, found, ports)

    def enforce(
        self,
        instance: objects.Instance,
        found: ContainerDetail,
        ports: network_model.NetworkInfo,
    ) -> None:
        """Hold an instance to the limits of its present flavor."""
        self._node.enforcement.enforce(
            instance.uuid,
            found,
            flavor_limits.instance_limits(instance, self._node.rules()),
            device_pairs(instance, ports),
        )

    def restore(self, instance: objects.Instance, ports: network_model.NetworkInfo) -> None:
        """Do for an instance what a start of nova-compute owes it; a fault of its limits is told.

        Nova asks for every instance when it starts, and would stop at one with a fault.
        """
        self.wire(instance, ports)
        server = self._node.listing.recent_servers().get(instance.uuid)
        if server is not None and servers.is_silent(server):
            network_vif.silence_vifs(instance, ports)
        elif server is not None:
            try:
                self.enforce(instance, self._node.find(instance), ports)
            except (exception.EngineError, exception.InvalidLimits, exception.LimitsNotKept) as e:
                LOG.error("The limits are not kept: %s", e, instance=instance)

    def attach(
        self, context: nova_context.RequestContext, instance: objects.Instance, vif: Any
    ) -> None:
        """Wire one more port of an instance, running or not; the others are left alone.

        :raises PlugFailed: it could not be wired, and nothing is left of it
        """
        with device_names.locked(instance.uuid), contextlib.ExitStack() as undo:
            found = self._node.find(instance)
            now = device_names.read_instance(context, instance.uuid)
            before = device_names.without_port(now.get_network_info(), vif)
            after = device_names.with_port(now.get_network_info(), vif)
            _record(context, now, after)
            undo.callback(self.apply, now, before, found)
            undo.callback(network_vif.unplug_vifs, now, [vif])
            self.apply(now, after, found)
            undo.pop_all()
            self._refresh_etc(found, now, before, after)

    def detach(
        self, context: nova_context.RequestContext, instance: objects.Instance, vif: Any
    ) -> None:
        """Unwire one port of an instance; the others keep their names. Absent is fine.

        :raises InstanceNotFound: there is no container any more, whose other ports it would wire
        """
        with device_names.locked(instance.uuid):
            network_vif.unplug_vifs(instance, [vif])
            found = self._node.find(instance)
            now = device_names.read_instance(context, instance.uuid)
            before = device_names.with_port(now.get_network_info(), vif)
            after = device_names.without_port(now.get_network_info(), vif)
            _record(context, now, after)
            # the default route may have been the port's
            self.apply(now, after, found)
            self._refresh_etc(found, now, before, after)

    def _make_owned(self, instance: objects.Instance) -> None:
        maps = self._node.id_maps
        if maps is not None:
            namespace.create_owned_namespace(instance.uuid, maps.users, maps.groups)

    def _wire_anew(self, instance: objects.Instance, ports: network_model.NetworkInfo) -> None:
        network_vif.replug_vifs(instance, ports)
        # the switch polices a new port as its own database says: not at all
        self._node.enforcement.sweep()

    def _refresh_etc(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        before: network_model.NetworkInfo,
        after: network_model.NetworkInfo,
    ) -> None:
        """Bring hosts and resolv.conf up to date where they are still as the driver wrote them."""
        engine = self._node.engine
        old, new = etc_files(instance, before), etc_files(instance, after)
        try:
            changed = {
                f"/etc/{name}": content
                for name, content in new.items()
                if content != old.get(name)
                and (engine.read_file(found.id, f"/etc/{name}") or b"") == old.get(name, b"")
            }
            if changed:
                engine.put_files(found.id, changed)
        except (exception.EngineUnavailable, exception.EngineError) as error:
            LOG.warning("/etc does not have the new ports: %s", error, instance=instance)


def device_pairs(
    instance: objects.Instance, ports: network_model.NetworkInfo
) -> tuple[tuple[str, str], ...]:
    """Return the host end and the guest end of each port."""
    names = nic.device_names(ports, device_names.recorded_names(instance))
    return tuple((nic.host_device_name(vif), names[vif["id"]]) for vif in ports)


def etc_files(instance: objects.Instance, ports: network_model.NetworkInfo) -> dict[str, bytes]:
    """Return the files of the network in ``/etc`` by name, as an instance must find them."""
    return identity.etc_files(
        instance.uuid,
        instance.hostname or instance.uuid,
        CONF.api.dhcp_domain,
        [str(ip["address"]) for ip in ports.fixed_ips()],
        nic.dns_from_network_info(ports),
    )


def _record(
    context: nova_context.RequestContext,
    instance: objects.Instance,
    ports: network_model.NetworkInfo,
) -> None:
    """Have Nova know the names and tags of exactly these ports' devices."""
    device_names.record_names(instance, ports)
    instance.device_metadata = device_tags.device_metadata(context, instance, ports)
    instance.save()
