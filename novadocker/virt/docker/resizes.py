# SPDX-License-Identifier: Apache-2.0
"""A resize on an instance's own host: other limits for a container that stays."""

from __future__ import annotations

from nova import objects
from nova.network import model as network_model
from oslo_log import log as logging

from novadocker.conf import CONF
from novadocker.virt.docker.limits import flavor as flavor_limits
from novadocker.virt.docker.limits import isolation
from novadocker.virt.docker.migration import nova_records
from novadocker.virt.docker.model import ContainerDetail, Limits
from novadocker.virt.docker.node import Node
from novadocker.virt.docker.ports import device_pairs
from novadocker.virt.docker.power import Power

LOG = logging.getLogger(__name__)


class Resizes:
    """Changes the limits of the instances of one host."""

    def __init__(self, node: Node, power: Power) -> None:
        self._node = node
        self._power = power

    def begin(
        self,
        instance: objects.Instance,
        flavor: objects.Flavor,
        network_info: network_model.NetworkInfo,
    ) -> None:
        """Give an instance another flavor's limits; one that runs goes on, as does a stopped one.

        :raises ResizeRefused: it can't live with them; nothing has changed
        """
        rules = self._node.rules()
        nova_records.check_isolation(
            isolation.isolation(flavor_limits.asked(instance, instance.flavor, rules)),
            isolation.isolation(flavor_limits.asked(instance, flavor, rules)),
        )
        old = flavor_limits.instance_limits(instance, rules)
        new = flavor_limits.limits_for(instance, flavor, nova_records.new_topology(instance), rules)
        self._change(instance, old, new, network_info)

    def finish(self, instance: objects.Instance, network_info: network_model.NetworkInfo) -> None:
        """See that an instance has the limits of its flavor, which is the new one by now."""
        rules = self._node.rules()
        old = flavor_limits.limits_for(
            instance, instance.old_flavor, nova_records.old_topology(instance), rules
        )
        self._change(instance, old, flavor_limits.instance_limits(instance, rules), network_info)

    def revert(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
    ) -> None:
        """Give an instance the limits of its flavor, which is the old one again.

        One that has come to need more memory is started anew, as a virtual machine would be.
        """
        most = flavor_limits.limits_for(
            instance, instance.flavor, nova_records.old_topology(instance), self._node.rules()
        )
        devices = device_pairs(instance, network_info)
        enforcement = self._node.enforcement
        crowded = enforcement.memory_in_use(found) > most.memory_bytes
        if crowded:
            LOG.warning("It uses more memory than it is to have: restarting", instance=instance)
            self._power.stop_processes(found, CONF.shutdown_timeout)
            found = self._node.find(instance)
        nova_records.set_limits(enforcement, instance.uuid, found, most, devices)
        if crowded:
            self._power.start(found, instance, network_info)

    def _change(
        self,
        instance: objects.Instance,
        old: Limits,
        new: Limits,
        network_info: network_model.NetworkInfo,
    ) -> None:
        found = self._node.find(instance)
        enforcement = self._node.enforcement
        nova_records.check_fits(enforcement, found, old, new)
        devices = device_pairs(instance, network_info)
        nova_records.change(enforcement, instance.uuid, found, old, new, devices)
