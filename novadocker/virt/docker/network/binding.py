# SPDX-License-Identifier: Apache-2.0
"""Pure: how Neutron bound a port -> what its host end is attached to, or why it can't be."""

import copy
from collections.abc import Mapping

from nova.network import model as network_model

from novadocker.privsep.network.types import Bridge

# as os-vif names the bridge of ovs_hybrid_plug, and Neutron that of a network
_HYBRID_PREFIXES = ("qbr", "qvb", "qvo")
_NETWORK_PREFIX = "brq"

# keys of binding:vif_details, see novadocker.neutron.mechanism
_BRIDGE_NAME = "bridge_name"
_PHYSICAL_NETWORK = "physical_network"
_VLAN = "vlan"


def is_switched(vif: network_model.VIF) -> bool:
    """Say whether os-vif plugs the port into Open vSwitch."""
    return bool(vif["type"] == network_model.VIF_TYPE_OVS)


def is_bridged(vif: network_model.VIF) -> bool:
    """Say whether our own mechanism driver bound the port, which waits for our report."""
    return bool(vif["type"] == network_model.VIF_TYPE_TAP)


def is_hybrid(vif: network_model.VIF) -> bool:
    """Say whether a Linux bridge with iptables is between the port and Open vSwitch."""
    return is_switched(vif) and bool(vif.is_hybrid_plug_enabled())


def hybrid_devices(vif: network_model.VIF) -> list[str]:
    """Return the names of the bridge, its end of the link to Open vSwitch, and the other end."""
    if not is_hybrid(vif):
        return []
    return [f"{prefix}{vif['id']}"[: network_model.NIC_NAME_LEN] for prefix in _HYBRID_PREFIXES]


def other_form(vif: network_model.VIF) -> network_model.VIF | None:
    """Return a port of Open vSwitch as the other of Neutron's firewalls would have it."""
    if not is_switched(vif):
        return None
    other = copy.copy(vif)
    other["details"] = {
        **(vif["details"] or {}),
        network_model.VIF_DETAILS_OVS_HYBRID_PLUG: not is_hybrid(vif),
    }
    return other


def bridge_of(vif: network_model.VIF, interfaces: Mapping[str, str]) -> Bridge | None:
    """Return the Linux bridge of a port's host end, None when it goes into Open vSwitch.

    :param interfaces: the host's interface to each physical network
    """
    details = vif["details"] or {}
    if is_hybrid(vif):
        return Bridge(hybrid_devices(vif)[0])
    if is_bridged(vif):
        return Bridge(
            details[_BRIDGE_NAME], interfaces[details[_PHYSICAL_NETWORK]], details.get(_VLAN)
        )
    if vif["type"] == network_model.VIF_TYPE_BRIDGE:
        return Bridge(vif["network"]["bridge"])
    return None


def refusal(vif: network_model.VIF, interfaces: Mapping[str, str]) -> str | None:
    """Return why a port can't be wired here, or None."""
    kind, details = vif["type"], vif["details"] or {}
    if kind == network_model.VIF_TYPE_BINDING_FAILED:
        return "Neutron could not bind it to this host (binding_failed): is its agent up here?"
    if vif["vnic_type"] != network_model.VNIC_TYPE_NORMAL:
        return f"its vnic_type is {vif['vnic_type']!r}; only 'normal' is supported"
    if kind == network_model.VIF_TYPE_TAP:
        return _refusal_of_tap(details, interfaces)
    if kind == network_model.VIF_TYPE_BRIDGE:
        bridge = (vif["network"] and vif["network"]["bridge"]) or ""
        if not bridge.startswith(_NETWORK_PREFIX):
            return f"its bridge is {bridge!r}, which is not Neutron's"
    elif kind != network_model.VIF_TYPE_OVS:
        return f"its vif_type is {kind!r}; only 'ovs', 'tap' and 'bridge' are supported"
    return None


def _refusal_of_tap(details: Mapping[str, object], interfaces: Mapping[str, str]) -> str | None:
    if _BRIDGE_NAME not in details or _PHYSICAL_NETWORK not in details:
        return "its vif_type is 'tap', but Neutron's mechanism driver novadocker did not bind it"
    if details[_PHYSICAL_NETWORK] not in interfaces:
        return (
            f"this host has no interface for the physical network {details[_PHYSICAL_NETWORK]!r} "
            "in [docker]physical_interface_mappings"
        )
    return None
