# SPDX-License-Identifier: Apache-2.0
"""The VIFs of an instance: wired into its namespace, plugged into the switch by os-vif."""

import copy
from dataclasses import asdict
from typing import Any

import os_vif
from nova import objects
from nova.network import model as network_model
from nova.network import os_vif_util
from os_vif import exception as os_vif_exception

from novadocker import exception
from novadocker.virt.docker import netns, nics, wiring


def initialize() -> None:
    """Load the plugins of os-vif; needed once before anything is plugged."""
    os_vif.initialize()


def check_supported(network_info: network_model.NetworkInfo) -> None:
    """Refuse VIFs that can't be wired here, before anything is done.

    :raises PlugFailed: names the port and what is wrong with its binding
    """
    for vif in network_info:
        if reason := _refusal(vif):
            raise exception.PlugFailed(port_id=vif["id"], reason=reason)


def plug_vifs(instance: objects.Instance, network_info: network_model.NetworkInfo) -> None:
    """Wire all VIFs of an instance and plug them into the switch; those that are stay untouched.

    :raises PlugFailed: names the port; others may be wired by then
    """
    check_supported(network_info)
    wanted = nics.nics_from_network_info(network_info)
    try:
        netns.wire_nics(instance.uuid, [asdict(nic) for nic in wanted])
    except wiring.WiringFailed as error:
        port_id, reason = error.args
        raise exception.PlugFailed(port_id=port_id, reason=reason) from error
    for vif in network_info:
        try:
            os_vif.plug(_os_vif_vif(vif), os_vif_util.nova_to_osvif_instance(instance))
        except os_vif_exception.ExceptionBase as error:
            raise exception.PlugFailed(port_id=vif["id"], reason=_cause(error)) from error


def unplug_vifs(instance: objects.Instance, network_info: network_model.NetworkInfo) -> None:
    """Take all VIFs of an instance from the switch and delete their devices; absent is fine.

    Every VIF is attempted.

    :raises PlugFailed: the first failure
    """
    failures = []
    for vif in network_info:
        try:
            if not _refusal(vif):
                os_vif.unplug(_os_vif_vif(vif), os_vif_util.nova_to_osvif_instance(instance))
        except os_vif_exception.ExceptionBase as error:
            failures.append(exception.PlugFailed(port_id=vif["id"], reason=_cause(error)))
        netns.unwire_nic(instance.uuid, nics.host_device_name(vif))
    if failures:
        raise failures[0]


def _refusal(vif: network_model.VIF) -> str | None:
    """Return why a VIF can't be wired, or None."""
    if vif["type"] == network_model.VIF_TYPE_BINDING_FAILED:
        return "Neutron could not bind it to this host (binding_failed): is its agent up here?"
    if vif["type"] != network_model.VIF_TYPE_OVS:
        return f"its vif_type is {vif['type']!r}; only 'ovs' is supported"
    if vif["vnic_type"] != network_model.VNIC_TYPE_NORMAL:
        return f"its vnic_type is {vif['vnic_type']!r}; only 'normal' is supported"
    if vif.is_hybrid_plug_enabled():
        return (
            "it asks for ovs_hybrid_plug, a bridge with iptables that is not supported; "
            "set firewall_driver = openvswitch for Neutron's agent on this host"
        )
    return None


def _os_vif_vif(vif: network_model.VIF) -> Any:
    # the model is Nova's, and shared: delegate_create makes os-vif add the port to the switch
    own = copy.copy(vif)
    own["delegate_create"] = True
    return os_vif_util.nova_to_osvif_vif(own)


def _cause(error: BaseException) -> str:
    return str(error.__context__ or error)
