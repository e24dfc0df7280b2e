# SPDX-License-Identifier: Apache-2.0
"""The VIFs of an instance: wired into its namespace, plugged into Open vSwitch by os-vif."""

import copy
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any

import os_vif
from nova import objects
from nova.network import model as network_model
from nova.network import os_vif_util
from os_vif import exception as os_vif_exception

from novadocker import exception
from novadocker.conf import CONF
from novadocker.linux import ovsdb
from novadocker.linux.threads import meanwhile
from novadocker.privsep.network import namespace, types, wiring
from novadocker.virt.docker.network import binding, device_names, neutron, ovs
from novadocker.virt.docker.network import nic as network_nic

# that os-vif has for one port, each with a time-out of its own
_REQUESTS = 2
# Because an ovs_vsctl_timeout of 0 is no bound, os-vif's default takes its place.
_LONGEST_ANSWER_SECONDS = 120


def initialize() -> None:
    """Load the plugins of os-vif; needed once before anything is plugged."""
    os_vif.initialize()
    ovs.warn_of_ineffective_limits(CONF.os_vif_ovs.ovsdb_connection, CONF.neutron.ovs_bridge)


def check_supported(network_info: network_model.NetworkInfo) -> None:
    """Refuse VIFs that can't be wired here, before anything is done.

    :raises PlugFailed: names the port and what is wrong with its binding
    """
    for vif in network_info:
        if reason := _refusal(vif):
            raise exception.PlugFailed(port_id=vif["id"], reason=reason)


@contextmanager
def plugged_vifs(
    instance: objects.Instance, network_info: network_model.NetworkInfo
) -> Iterator[None]:
    """Wire all VIFs of an instance, and have them in the switch when the block ends.

    Those that are there already stay untouched. What the block makes can't count on any of them.

    :raises PlugFailed: names the port; others may be wired by then
    """
    check_supported(network_info)
    with meanwhile(_wire_and_plug, instance, network_info):
        yield
    neutron.report_wired(
        instance,
        [vif for vif in network_info if binding.is_bridged(vif) and vif["active"] is False],
    )


def plug_vifs(instance: objects.Instance, network_info: network_model.NetworkInfo) -> None:
    """Wire all VIFs of an instance and plug them into the switch; those that are stay untouched.

    :raises PlugFailed: names the port; others may be wired by then
    """
    with plugged_vifs(instance, network_info):
        pass


def silence_vifs(instance: objects.Instance, network_info: network_model.NetworkInfo) -> None:
    """Let an instance answer nothing until its VIFs are plugged again.

    Its namespace keeps the addresses when it stops, and the kernel would answer for them.
    """
    if network_info:
        names = [network_nic.host_device_name(vif) for vif in network_info]
        namespace.silence_nics(instance.uuid, names)


def announce_vifs(instance: objects.Instance, network_info: network_model.NetworkInfo) -> None:
    """Tell the neighbours of a server that runs which MAC its addresses have now.

    They may remember the one of a server that had an address before, for a minute or longer.
    """
    if network_info:
        names = network_nic.device_names(network_info, device_names.recorded_names(instance))
        namespace.announce_nics(instance.uuid, list(names.values()))


def replug_vifs(instance: objects.Instance, network_info: network_model.NetworkInfo) -> None:
    """Put an instance's ports into Open vSwitch anew; the devices stay as they are.

    Neutron's agent skips a port that its own copy of the switch's database lacks when it is told
    of it, and looks at that port again only when it is inserted once more. Ports with a bridge of
    their own between are left alone: os-vif inserts them only together with their devices.

    :raises PlugFailed: names the port
    """
    for vif in network_info:
        if binding.is_switched(vif) and not binding.is_hybrid(vif):
            with _reporting(vif):
                port = _os_vif_vif(vif)
                ovsdb.delete_port(
                    CONF.os_vif_ovs.ovsdb_connection,
                    port.network.bridge,
                    port.vif_name,
                    _answer_seconds(),
                )
                _ask_switch(os_vif.plug, instance, vif)


def unplug_vifs(instance: objects.Instance, network_info: network_model.NetworkInfo) -> None:
    """Take all VIFs of an instance from the switch and delete their devices; absent is fine.

    Every VIF is attempted.

    :raises PlugFailed: the first failure
    """
    failures = []
    for vif in network_info:
        for step in (_drop_port, _drop_other_form, _delete_device):
            try:
                with _reporting(vif):
                    step(instance, vif)
            except exception.PlugFailed as error:
                failures.append(error)
    if failures:
        raise failures[0]


def _wire_and_plug(instance: objects.Instance, network_info: network_model.NetworkInfo) -> None:
    switched = [vif for vif in network_info if binding.is_switched(vif)]
    hybrid = [vif for vif in switched if binding.is_hybrid(vif)]
    absent = [vif for vif in switched if not _has_devices(vif)]
    _drop_left(instance, absent)
    # os-vif makes the bridge that the host end goes into
    _plug(instance, hybrid)
    made = _wire(instance, network_info)
    replaced = [vif for vif in switched if vif["id"] in made and vif not in absent]
    if replaced:
        # dropping a port deletes its device, too
        _drop_ports(instance, replaced)
        _plug(instance, hybrid)
        _wire(instance, network_info)
    _plug_at_once(instance, [vif for vif in switched if vif not in hybrid])


def _wire(instance: objects.Instance, network_info: network_model.NetworkInfo) -> tuple[str, ...]:
    """Wire all VIFs into the instance's namespace; return the ports whose devices are new."""
    found = network_nic.nics_from_network_info(network_info, device_names.recorded_names(instance))
    wanted = [
        asdict(replace(nic, bridge=_bridge_of(vif)))
        for nic, vif in zip(found, network_info, strict=True)
    ]
    try:
        made: tuple[str, ...] = namespace.wire_nics(instance.uuid, wanted)
    except wiring.WiringFailed as error:
        port_id, reason = error.args
        raise exception.PlugFailed(port_id=port_id, reason=reason) from error
    return made


def _plug(instance: objects.Instance, vifs: Iterable[network_model.VIF]) -> None:
    for vif in vifs:
        with _reporting(vif):
            _ask_switch(os_vif.plug, instance, vif)


def _plug_at_once(instance: objects.Instance, vifs: Iterable[network_model.VIF]) -> None:
    """Have the switch take all ports together; none is on its way in the end."""
    asked = [(vif, _begin(os_vif.plug, instance, vif)) for vif in vifs]
    with ExitStack() as stack:
        for vif, finish in asked:
            stack.enter_context(_reporting(vif))
            stack.callback(finish)


def _drop_left(instance: objects.Instance, vifs: Iterable[network_model.VIF]) -> None:
    """Remove the switch's ports of devices that are gone, if there are any."""
    _drop_ports(instance, [vif for vif in vifs if binding.is_hybrid(vif)])
    for vif in vifs:
        if not binding.is_hybrid(vif):
            with _reporting(vif):
                # Because os-vif takes long to remove nothing, the database is asked first.
                if _is_in_switch(vif):
                    _ask_switch(os_vif.unplug, instance, vif)


def _is_in_switch(vif: network_model.VIF) -> bool:
    """Return True if Open vSwitch has a port of a VIF.

    :raises OSError: the database does not answer in time
    """
    port = _os_vif_vif(vif)
    return ovsdb.has_port(
        CONF.os_vif_ovs.ovsdb_connection, port.network.bridge, port.vif_name, _answer_seconds()
    )


def _answer_seconds() -> float:
    return float(CONF.os_vif_ovs.ovs_vsctl_timeout or _LONGEST_ANSWER_SECONDS)


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
    if binding.is_switched(vif) and not _refusal(vif):
        _ask_switch(os_vif.unplug, instance, vif)


def _drop_other_form(instance: objects.Instance, vif: network_model.VIF) -> None:
    """Remove a port from the switch as it is with the other of Neutron's firewalls.

    One that moved to a host with the other is told of as it is there.
    """
    other = binding.other_form(vif)
    if other and (not binding.is_hybrid(other) or _present(binding.hybrid_devices(other))):
        _drop_left(instance, [other])


def _ask_switch(
    call: Callable[[Any, Any], None], instance: objects.Instance, vif: network_model.VIF
) -> None:
    """Let os-vif do something, and wait for it.

    :raises PlugFailed: it took too long
    """
    _begin(call, instance, vif)()


def _begin(
    call: Callable[[Any, Any], None], instance: objects.Instance, vif: network_model.VIF
) -> Callable[[], None]:
    """Let os-vif work in a thread that is left alone when it takes too long.

    Its requests have a time-out, but its locks have none, and while the database of Open vSwitch
    hangs so does who waits for one. The thread ends when the database is back.

    :returns: what waits for it; raises its errors, and PlugFailed if it took too long
    """
    done: futures.Future[None] = futures.Future()

    def work() -> None:
        try:
            call(_os_vif_vif(vif), os_vif_util.nova_to_osvif_instance(instance))
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            done.set_exception(error)
        else:
            done.set_result(None)

    def finish() -> None:
        try:
            # a time-out of 0 waits for ever
            done.result(_REQUESTS * CONF.os_vif_ovs.ovs_vsctl_timeout or None)
        except TimeoutError as error:
            raise exception.PlugFailed(
                port_id=vif["id"], reason="Open vSwitch does not answer: timeout"
            ) from error

    threading.Thread(target=work, daemon=True, name="os-vif").start()
    return finish


def _delete_device(instance: objects.Instance, vif: network_model.VIF) -> None:
    bridge = None if _refusal(vif) else _bridge_of(vif)
    namespace.unwire_nic(
        instance.uuid, network_nic.host_device_name(vif), bridge and asdict(bridge)
    )


def _has_devices(vif: network_model.VIF) -> bool:
    names = {network_nic.host_device_name(vif), *binding.hybrid_devices(vif)}
    return _present(names) == names


def _present(names: Iterable[str]) -> set[str]:
    """Return those of the names that devices of the host bear."""
    return {name for _, name in socket.if_nameindex()}.intersection(names)


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
    return binding.refusal(vif, CONF.docker.physical_interface_mappings)


def _bridge_of(vif: network_model.VIF) -> types.Bridge | None:
    return binding.bridge_of(vif, CONF.docker.physical_interface_mappings)


def _os_vif_vif(vif: network_model.VIF) -> Any:
    # the model is Nova's, and shared: delegate_create makes os-vif add the port to the switch
    own = copy.copy(vif)
    own["delegate_create"] = True
    return os_vif_util.nova_to_osvif_vif(own)
