# SPDX-License-Identifier: Apache-2.0
"""Privileged: make the network devices of an instance what they must be, through netlink.

Each step reads what the kernel has and changes only what differs, so that a second call on a wired
namespace sends nothing but questions.
"""

import ctypes
import errno
import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from pyroute2.ethtool.ioctl import ETHTOOL_STXCSUM, EthtoolValue, IoctlEthtool

from novadocker.linux import namespaces
from novadocker.linux.namespaces import IdMaps
from novadocker.privsep.network import bridge as network_bridge
from novadocker.privsep.network import link as network_link
from novadocker.privsep.network import rtnetlink
from novadocker.privsep.network.rtnetlink import Netlink
from novadocker.privsep.network.types import Bridge, Nic, Route

# Neutron alone says what an address is: no router may add one, and no probe may delay one;
# what addresses there are is told when ``announce`` wants it
_GUEST_SYSCTL = {
    "ipv4": {"arp_notify": "1"},
    "ipv6": {"accept_ra": "0", "autoconf": "0", "accept_dad": "0", "ndisc_notify": "1"},
}
# the host must not speak on a tenant's network, nor heed a router there
_HOST_SYSCTL = {"ipv6": {"disable_ipv6": "1"}}
# of every namespace
_LOOPBACK = 1
# removing one thing can take others along (an address its routes): a second round puts them back
_ROUNDS = 2


class WiringFailed(Exception):
    """A NIC could not be wired; the arguments are the port's id and the reason.

    A plain exception, since it is carried from the privileged process to nova-compute.
    """


def wire(path: str, nics: Sequence[Nic]) -> tuple[str, ...]:
    """Make the namespace at ``path`` exist with its loopback up, and each NIC in it right.

    Leaves the calling thread in that namespace: call it by ``kernel.run_in_thread``.

    :returns: the ports whose devices are new
    :raises WiringFailed: a NIC is not what it must be
    :raises OSError: no namespace could be made
    """
    with ExitStack() as stack:
        host = stack.enter_context(Netlink())
        guest, fresh = stack.enter_context(_open_guest(path))
        namespace = namespaces.open_namespace(path)
        stack.callback(os.close, namespace)
        names = [nic.guest_device for nic in nics]
        present = {} if fresh else network_link.read_devices(guest, names)
        guest.ask(rtnetlink.set_link(_LOOPBACK, up=True))
        made = []
        for nic in nics:
            with _blaming(nic):
                device = present.get(nic.guest_device)
                with network_bridge.joined(host, nic) as bridge:
                    if _ensure_pair(host, guest, namespace, nic, device, bridge):
                        made.append(nic.port_id)
        namespaces.enter_namespace(namespace)
        for nic in nics:
            if nic.software_checksums:
                _fill_in_checksums(nic)
        state = (
            _new_state(nics) if len(made) == len(nics) else network_link.read_state(guest, names)
        )
        for _ in range(_ROUNDS):
            if not any([_correct(guest, nic, state) for nic in nics]):  # noqa: C419 - correct all
                return tuple(made)
            state = network_link.read_state(guest, names)
        for nic in nics:
            changes = network_link.changes_of(nic, state)
            if changes.needed:
                raise WiringFailed(nic.port_id, f"the kernel does not keep {changes}")
    return tuple(made)


def make_owned(path: str, user_path: str, ids: IdMaps) -> None:
    """Make the namespace at ``path`` exist, as one of a user namespace that is made with it.

    Leaves the calling thread in that namespace: call it by ``kernel.run_in_thread``.

    :raises OSError: no namespace could be made
    """
    if not namespaces.is_namespace(path):
        namespaces.enter_new_owned_namespace(user_path, ids)
        _write_sysctl("default", _GUEST_SYSCTL)
        namespaces.name_namespace(path)


def unwire(host_device: str, bridge: Bridge | None) -> None:
    """Delete a veth pair by its host end, and the bridge it was the last in; absent is fine.

    :raises OSError: the kernel refuses
    """
    with Netlink() as host, network_bridge.lock:
        _delete_veth(host, host_device)
        if bridge is not None:
            network_bridge.remove_unused(host, bridge)


def silence(host_devices: Sequence[str]) -> None:
    """Take host ends down, so that nothing answers behind them; absent is fine.

    Addresses and routes stay: the other ends only lose their carrier.

    :raises OSError: the kernel refuses
    """
    with Netlink() as host:
        host.ask(*map(rtnetlink.take_down, host_devices), ignoring=errno.ENODEV)


def announce(path: str, guest_devices: Sequence[str]) -> None:
    """Have the kernel announce the addresses of devices in the namespace at ``path``.

    By gratuitous ARP (RFC 5227, section 3) and unsolicited neighbour advertisements (RFC 4861,
    section 7.2.6), see ``arp_notify`` and ``ndisc_notify`` in the kernel's ip-sysctl. Leaves the
    calling thread in that namespace: call it by ``kernel.run_in_thread``.

    :raises OSError: the kernel refuses
    """
    namespaces.enter_namespace_at(path)
    with Netlink() as guest:
        devices = network_link.read_devices(guest, guest_devices).values()
        # they speak when a MAC is set, also to what it is
        guest.ask(*(rtnetlink.set_link(device.index, mac=device.mac) for device in devices))


@contextmanager
def _blaming(nic: Nic) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WiringFailed(nic.port_id, str(error)) from error


@contextmanager
def _open_guest(path: str) -> Iterator[tuple[Netlink, bool]]:
    """Open netlink in the namespace at ``path``, which is made when there is none.

    The body runs in the host's namespace again: a socket stays where it was opened. The second
    value says whether the namespace is fresh.
    """
    home = namespaces.open_namespace()
    try:
        if fresh := not namespaces.is_namespace(path):
            namespaces.enter_new_namespace()
            _write_sysctl("default", _GUEST_SYSCTL)
        else:
            namespaces.enter_namespace_at(path)
        with Netlink() as guest:
            if fresh:
                namespaces.name_namespace(path)
            namespaces.enter_namespace(home)
            yield guest, fresh
    finally:
        os.close(home)


def _ensure_pair(
    host: Netlink,
    guest: Netlink,
    namespace: int,
    nic: Nic,
    device: network_link.Device | None,
    bridge: int | None,
) -> bool:
    """Make the veth pair of a NIC, unless the host end's peer is the device seen in the namespace.

    Whatever else bears one of the two names goes. Returns whether the pair is new.

    :param bridge: index of the Linux bridge to put the host end into
    """
    link = None
    if device is not None:
        link = network_link.find_link(host, nic.host_device)
        if link is None or not _is_peer(host, link, namespace, device):
            network_link.delete_link(guest, device.index)
            link = None
    if link is None:
        _make_pair(host, namespace, nic, bridge)
        return True
    attributes: dict[str, Any] = {}
    if nic.mtu and link.get_attr("IFLA_MTU") != nic.mtu:
        attributes["mtu"] = nic.mtu
    if bridge and link.get_attr("IFLA_MASTER") != bridge:
        attributes["master"] = bridge
    if not network_link.is_up(link):
        attributes["up"] = True
    if attributes:
        host.ask(rtnetlink.set_link(link["index"], **attributes))
    return False


def _make_pair(host: Netlink, namespace: int, nic: Nic, bridge: int | None) -> None:
    request = rtnetlink.add_veth(
        nic.host_device, nic.guest_device, namespace, nic.mac, nic.mtu, bridge
    )
    try:
        host.ask(request)
    except FileExistsError:
        # the peer of the one in the way is not in our namespace
        _delete_veth(host, nic.host_device)
        host.ask(request)
    _write_sysctl(nic.host_device, _HOST_SYSCTL)


def _is_peer(host: Netlink, link: Any, namespace: int, device: network_link.Device) -> bool:
    """Say whether a link of the host and a device in a namespace are the ends of one veth pair."""
    if link.get_attr("IFLA_LINK") != device.index or device.peer != link["index"]:
        return False
    ((known,),) = host.ask(rtnetlink.get_namespace_id(namespace))
    return bool(link.get_attr("IFLA_LINK_NETNSID") == known.get_attr("NETNSA_NSID"))


def _new_state(nics: Sequence[Nic]) -> network_link.State:
    """Return what the kernel would show of new devices in the thread's namespace.

    To ask it takes longer than to make them.
    """
    devices = {
        nic.guest_device: network_link.Device(
            index=socket.if_nametoindex(nic.guest_device),
            peer=None,
            mac=nic.mac,
            mtu=nic.mtu or 0,
            up=False,
        )
        for nic in nics
    }
    return network_link.State(devices, addresses={}, routes={})


def _correct(guest: Netlink, nic: Nic, state: network_link.State) -> bool:
    """Make one device what it must be.

    Returns whether something was taken away, so that what is left must be read again; the kernel
    has acknowledged whatever was added.
    """
    with _blaming(nic):
        changes = network_link.changes_of(nic, state)
        index = changes.index
        guest.ask(
            *(rtnetlink.delete_route(index, route) for route in changes.extra_routes),
            ignoring=errno.ESRCH,
        )
        guest.ask(
            *(rtnetlink.delete_address(index, address) for address in changes.extra_addresses),
            ignoring=errno.EADDRNOTAVAIL,
        )
        if changes.new_mac:
            # else the IPv6 link-local address of the old MAC stays
            guest.ask(rtnetlink.set_link(index, up=False))
            guest.ask(rtnetlink.set_link(index, **{**changes.attributes, "up": True}))
        guest.ask(
            *([rtnetlink.set_link(index, **changes.attributes)] if changes.attributes else []),
            *(rtnetlink.add_address(index, address) for address in changes.missing_addresses),
            *(
                rtnetlink.add_route(index, route, _is_near(nic, route))
                for route in changes.missing_routes
            ),
        )
    return changes.removes


def _fill_in_checksums(nic: Nic) -> None:
    """Have the kernel finish the checksums of what leaves a device of the thread's namespace."""
    with _blaming(nic), closing(IoctlEthtool(nic.guest_device)) as device:
        # Because pyroute2 0.7.7 has the request but no function for it, the ioctl is called here.
        # Its function that sets features by name takes 30 times as long.
        device.ifreq.value = ctypes.pointer(EthtoolValue(cmd=ETHTOOL_STXCSUM, data=0))
        device.ioctl()


def _is_near(nic: Nic, route: Route) -> bool:
    """Say whether a route's gateway is where an address of the NIC has its subnet."""
    if route.gateway is None:
        return True
    gateway = ipaddress.ip_address(route.gateway)
    return gateway.is_link_local or any(
        gateway in ipaddress.ip_interface(address).network for address in nic.addresses
    )


def _delete_veth(host: Netlink, name: str) -> None:
    link = network_link.find_link(host, name)
    if link is None:
        return
    if network_link.kind_of(link) != "veth":
        raise OSError(errno.EEXIST, "a device that is no veth bears the name", name)
    network_link.delete_link(host, link["index"])


def _write_sysctl(device: str, values: Mapping[str, Mapping[str, str]]) -> None:
    """Set switches of a device by protocol, in the calling thread's namespace."""
    for protocol, switches in values.items():
        # a kernel without IPv6 has none of its
        with suppress(FileNotFoundError):
            for key, value in switches.items():
                Path(f"/proc/sys/net/{protocol}/conf/{device}/{key}").write_text(value)
