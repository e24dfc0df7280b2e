# SPDX-License-Identifier: Apache-2.0
"""The VIFs of an instance: wired into its namespace, plugged into the switch by os-vif."""

import copy
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
    absent = [vif for vif in network_info if not _has_device(vif)]
    _drop_ports(instance, absent)
    made = _wire(instance, network_info)
    replaced = [vif for vif in network_info if vif["id"] in made and vif not in absent]
    if replaced:
        # dropping a port deletes its device, too
        _drop_ports(instance, replaced)
        _wire(instance, network_info)
    for vif in network_info:
        with _reporting(vif):
            os_vif.plug(_os_vif_vif(vif), os_vif_util.nova_to_osvif_instance(instance))


def silence_vifs(instance: objects.Instance, network_info: network_model.NetworkInfo) -> None:
    """Let an instance answer nothing until its VIFs are plugged again.

    Its namespace keeps the addresses when it stops, and the kernel would answer for them.
    """
    if network_info:
        names = [nics.host_device_name(vif) for vif in network_info]
        netns.silence_nics(instance.uuid, names)


def unplug_vifs(instance: objects.Instance, network_info: network_model.NetworkInfo) -> None:
    """Take all VIFs of an instance from the switch and delete their devices; absent is fine.

    Every VIF is attempted.

    :raises PlugFailed: the first failure
    """
    failures = []
    for vif in network_info:
        for step in (_drop_port, _delete_device):
            try:
                with _reporting(vif):
                    step(instance, vif)
            except exception.PlugFailed as error:
                failures.append(error)
    if failures:
        raise failures[0]


def _wire(instance: objects.Instance, network_info: network_model.NetworkInfo) -> tuple[str, ...]:
    """Wire all VIFs into the instance's namespace; return the ports whose devices are new."""
    wanted = [asdict(nic) for nic in nics.nics_from_network_info(network_info)]
    try:
        made: tuple[str, ...] = netns.wire_nics(instance.uuid, wanted)
    except wiring.WiringFailed as error:
        port_id, reason = error.args
        raise exception.PlugFailed(port_id=port_id, reason=reason) from error
    return made


def _drop_ports(instance: objects.Instance, vifs: Iterable[network_model.VIF]) -> None:
    """Remove the switch's ports of devices that are gone.

    Open vSwitch goes on reading from the device it once opened (its userspace datapath does), so
    a new one of the same name would be deaf.
    """
    for vif in vifs:
        with _reporting(vif):
            _drop_port(instance, vif)


def _drop_port(instance: objects.Instance, vif: network_model.VIF) -> None:
    # what was never plugged is in no switch
    if not _refusal(vif):
        os_vif.unplug(_os_vif_vif(vif), os_vif_util.nova_to_osvif_instance(instance))


def _delete_device(instance: objects.Instance, vif: network_model.VIF) -> None:
    netns.unwire_nic(instance.uuid, nics.host_device_name(vif))


def _has_device(vif: network_model.VIF) -> bool:
    try:
        socket.if_nametoindex(nics.host_device_name(vif))
    except OSError:
        return False
    return True


@contextmanager
def _reporting(vif: network_model.VIF) -> Iterator[None]:
    try:
        yield
    except os_vif_exception.ExceptionBase as error:
        # os-vif's own text is the whole VIF
        raise exception.PlugFailed(port_id=vif["id"], reason=error.__context__ or error) from error
    except OSError as error:
        raise exception.PlugFailed(port_id=vif["id"], reason=error) from error


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
