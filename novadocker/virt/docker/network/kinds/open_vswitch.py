# SPDX-License-Identifier: Apache-2.0
"""VIFs whose host device is a port of Open vSwitch, plugged by os-vif."""

from __future__ import annotations

import copy

from nova import objects
from nova.network import model as network_model

from novadocker import naming
from novadocker.virt.docker.network.kinds.kind import Kind, Plugging, Switch, Wait

# Neutron 29 sets it for the kernel's datapath and with OVN; Nova 31 has no name for it.
_CREATE_TAP = "ovs_create_tap"


class OpenVSwitch(Kind):
    """Ports whose host device is in Open vSwitch, as with the firewall ``openvswitch``."""

    vif_type = network_model.VIF_TYPE_OVS
    plugging = Plugging.AFTER_WIRING

    def __init__(self, switch: Switch) -> None:
        self._switch = switch

    def matches(self, vif: network_model.VIF) -> bool:
        """Return True if no Linux bridge is between the port and Open vSwitch."""
        return super().matches(vif) and not vif.is_hybrid_plug_enabled()

    def software_checksums(self, vif: network_model.VIF) -> bool:
        """Return True if the port's bridge has the userspace datapath."""
        return has_userspace_datapath(vif)

    def plug(self, instance: objects.Instance, vif: network_model.VIF) -> Wait:
        """Begin to add the port to Open vSwitch."""
        return self._switch.plug(instance, vif)

    def unplug(self, instance: objects.Instance, vif: network_model.VIF) -> None:
        """Remove the port from Open vSwitch."""
        self._switch.unplug(instance, vif)

    def unplug_stale(self, instance: objects.Instance, vif: network_model.VIF) -> None:
        """Remove the port from Open vSwitch if the database has one."""
        # Because os-vif takes long to remove nothing, the database is asked first.
        if self._switch.has_port(vif):
            self._switch.unplug(instance, vif)

    def replug(self, instance: objects.Instance, vif: network_model.VIF) -> None:
        """Delete the port from Open vSwitch and add it again."""
        self._switch.delete_port(vif)
        self._switch.plug(instance, vif)()

    def other_form(self, vif: network_model.VIF) -> network_model.VIF | None:
        """Return the VIF as a host with the firewall ``iptables_hybrid`` plugs it."""
        return with_hybrid_plug(vif, True)


def has_userspace_datapath(vif: network_model.VIF) -> bool:
    """Return True if the switch of a VIF reads packets outside the kernel.

    Because this datapath forwards a packet with an unfinished checksum as it is, the sender must
    complete the checksum.
    """
    return bool((vif["details"] or {}).get("datapath_type") == "netdev")


def without_tap_device(vif: network_model.VIF) -> network_model.VIF:
    """Return a copy of a VIF for whose port os-vif creates no TAP device.

    os-vif would create one if the veth device is absent when os-vif adds the port.
    """
    # Nova shares its model, so the VIF itself stays as it is.
    own = copy.copy(vif)
    own["details"] = {**(vif["details"] or {}), _CREATE_TAP: False}
    return own


def vif_of_port(device: str, port_id: str, mac: str, bridge: str) -> network_model.VIF:
    """Return a VIF with what is necessary to unplug it, given its port of Open vSwitch.

    :param device: name of the port in the switch
    :param bridge: the bridge of Open vSwitch
    """
    host_device = naming.bridged_host_device(device)
    return network_model.VIF(
        id=port_id,
        address=mac,
        network=network_model.Network(id=port_id, bridge=bridge, subnets=[]),
        type=network_model.VIF_TYPE_OVS,
        details={network_model.VIF_DETAILS_OVS_HYBRID_PLUG: host_device is not None},
        devname=host_device or device,
        vnic_type=network_model.VNIC_TYPE_NORMAL,
    )


def with_hybrid_plug(vif: network_model.VIF, hybrid: bool) -> network_model.VIF:
    """Return a copy of a VIF with or without a Linux bridge before Open vSwitch.

    Neutron describes a port that has moved as the new host's agent has it plugged.
    """
    other = copy.copy(vif)
    other["details"] = {
        **(vif["details"] or {}),
        network_model.VIF_DETAILS_OVS_HYBRID_PLUG: hybrid,
    }
    return other
