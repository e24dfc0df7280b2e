# SPDX-License-Identifier: Apache-2.0
"""VIFs with a Linux bridge between their host device and Open vSwitch, plugged by os-vif."""

from __future__ import annotations

from nova import objects
from nova.network import model as network_model

from novadocker import naming
from novadocker.privsep.network.types import Bridge
from novadocker.virt.docker.network.kinds.kind import Kind, Plugging, Switch, Wait
from novadocker.virt.docker.network.kinds.open_vswitch import (
    has_userspace_datapath,
    with_hybrid_plug,
)


class HybridOpenVSwitch(Kind):
    """Ports of Open vSwitch with the firewall ``iptables_hybrid``.

    os-vif creates a Linux bridge, on which Neutron's agent filters, and its link to Open vSwitch.
    """

    vif_type = network_model.VIF_TYPE_OVS
    plugging = Plugging.BEFORE_WIRING

    def __init__(self, switch: Switch) -> None:
        self._switch = switch

    def matches(self, vif: network_model.VIF) -> bool:
        """Return True if a Linux bridge is between the port and Open vSwitch."""
        return super().matches(vif) and bool(vif.is_hybrid_plug_enabled())

    def bridge(self, vif: network_model.VIF) -> Bridge | None:
        """Return the bridge that os-vif creates."""
        return Bridge(self.devices(vif)[0])

    def software_checksums(self, vif: network_model.VIF) -> bool:
        """Return True if the bridge of Open vSwitch has the userspace datapath."""
        return has_userspace_datapath(vif)

    def devices(self, vif: network_model.VIF) -> tuple[str, ...]:
        """Return the names of the bridge and of both ends of its link to Open vSwitch."""
        return naming.bridged_devices(vif["id"])

    def plug(self, instance: objects.Instance, vif: network_model.VIF) -> Wait:
        """Begin to create the bridge and its link to Open vSwitch."""
        return self._switch.plug(instance, vif)

    def unplug(self, instance: objects.Instance, vif: network_model.VIF) -> None:
        """Delete the bridge and its link to Open vSwitch."""
        self._switch.unplug(instance, vif)

    def unplug_stale(self, instance: objects.Instance, vif: network_model.VIF) -> None:
        """Delete the rest of the bridge and of its link to Open vSwitch."""
        self._switch.unplug(instance, vif)

    def replug(self, instance: objects.Instance, vif: network_model.VIF) -> None:
        """Do nothing, because os-vif inserts the port only together with its devices."""

    def other_form(self, vif: network_model.VIF) -> network_model.VIF | None:
        """Return the VIF as a host with the firewall ``openvswitch`` plugs it."""
        return with_hybrid_plug(vif, False)
