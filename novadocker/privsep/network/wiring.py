# SPDX-License-Identifier: Apache-2.0
"""Privileged: create and configure the network devices of an instance, through netlink.

Each step reads the state of the kernel and changes only what differs, so that a second call for a
wired namespace only reads.
"""

import ctypes
import errno
import fcntl
import ipaddress
import os
import posixpath
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from pyroute2.ethtool.ioctl import ETHTOOL_STXCSUM, EthtoolValue, IoctlEthtool

from novadocker.linux import namespaces
from novadocker.linux.namespaces import IdMaps
from novadocker.privsep.network import bridge as network_bridge
from novadocker.privsep.network import given, rtnetlink
from novadocker.privsep.network import link as network_link
from novadocker.privsep.network.rtnetlink import Netlink
from novadocker.privsep.network.types import Bridge, Nic, Route
from novadocker.state_files import namespaces as marks

# Because Neutron assigns the addresses, no router may add one and no duplicate address detection
# may delay one. ``announce`` makes the kernel announce them.
_GUEST_SYSCTL = {
    "ipv4": {
        "arp_notify": "1",
        # Otherwise the kernel deletes a tenant's addresses of a subnet with the first one of it.
        "promote_secondaries": "1",
    },
    "ipv6": {"accept_ra": "0", "autoconf": "0", "accept_dad": "0", "ndisc_notify": "1"},
}
# Because the network is a tenant's, the host sends nothing and accepts no router there.
_HOST_SYSCTL = {"ipv6": {"disable_ipv6": "1"}}
# linux/nsfs.h
_NS_GET_USERNS = 0xB701
# Because the kernel deletes the routes of a deleted address, a second round adds them again.
_ROUNDS = 2


class WiringFailed(Exception):
    """A NIC cannot be wired; the arguments are the port's id and the reason.

    A plain exception, because oslo.privsep sends its arguments to nova-compute.
    """


def wire(path: str, user_path: str, nics: Sequence[Nic], keep_own: bool) -> tuple[str, ...]:
    """Create the namespace at ``path`` and its NICs, and configure them. Idempotent.

    Leaves the calling thread in that namespace: call it by ``namespaces.run_in_thread``.

    :param user_path: of the user namespace that owns the namespace, if there is one
    :param keep_own: True if devices, addresses and routes stay that the driver did not add
    :returns: the ports whose devices are new
    :raises WiringFailed: the kernel refuses a NIC or does not keep its settings
    :raises OSError: the namespace cannot be created
    """
    names = [nic.guest_device for nic in nics]
    if not keep_own and namespaces.is_namespace(path):
        namespaces.run_in_thread(_clean, path, user_path, names)
    with ExitStack() as stack:
        host = stack.enter_context(Netlink())
        guest, fresh = stack.enter_context(_open_guest(path))
        namespace = namespaces.open_namespace(path)
        stack.callback(os.close, namespace)
        name = posixpath.basename(path)
        before = None if fresh else given.read(name)
        wanted = given.of_nics(nics, before or {})
        # If this process is killed, the record has all that the devices may have.
        given.write(name, given.merged(before or {}, wanted))
        present = {} if fresh else network_link.read_devices(guest, names)
        guest.ask(rtnetlink.set_link(network_link.LOOPBACK, up=True))
        made = []
        for nic in nics:
            with _naming_port(nic):
                device = present.get(nic.guest_device)
                with network_bridge.joined(host, nic) as bridge:
                    if _ensure_pair(host, guest, namespace, nic, device, bridge):
                        made.append(nic.port_id)
        namespaces.enter_namespace(namespace)
        for nic in nics:
            if nic.software_checksums:
                _fill_in_checksums(nic)
        # The tenant's other devices may have routes to the destinations of the new devices' routes.
        unread = fresh or (len(made) == len(nics) and not keep_own)
        record = before if keep_own else None
        state = _new_state(nics) if unread else network_link.read_state(guest, nics, record)
        _settle(guest, nics, state, record)
        given.write(name, wanted)
    return tuple(made)


def _settle(
    guest: Netlink,
    nics: Sequence[Nic],
    state: network_link.State,
    record: given.Record | None,
) -> None:
    """Apply the settings of NICs to their devices, and check that the kernel keeps them.

    :param record: what the devices were given before; the rest stays. None if nothing else stays
    """
    for _ in range(_ROUNDS):
        if not any([_correct(guest, nic, state, record) for nic in nics]):  # noqa: C419 - all
            return
        state = network_link.read_state(guest, nics, record)
    for nic in nics:
        changes = network_link.changes_of(nic, state, record)
        if changes.needed:
            raise WiringFailed(nic.port_id, f"the kernel does not keep the settings: {changes}")


def _clean(path: str, user_path: str, kept: Sequence[str]) -> None:
    """Delete what a tenant set in the namespace at ``path``, except in the devices to keep.

    Because the time and the memory would grow with what the tenant set, a namespace with too much
    is replaced by a new one. The kernel deletes the old one later, with its devices. If there is
    none at ``path`` afterwards, ``wire`` creates it. Leaves the calling thread in a namespace.
    """
    namespaces.enter_namespace_at(path)
    try:
        with Netlink() as guest:
            network_link.delete_others(guest, kept)
            network_link.delete_settings(guest)
            return
    except rtnetlink.TooManyError:
        owned = is_owned_by(path, user_path)
    namespaces.unmount_namespace(path)
    given.forget(posixpath.basename(path))
    if owned:
        namespaces.enter_new_namespace_of(user_path)
        _mount_new(path)


def create_owned(path: str, user_path: str, ids: IdMaps) -> None:
    """Create the network namespace at ``path``, owned by a new user namespace. Idempotent.

    Leaves the calling thread in that namespace: call it by ``namespaces.run_in_thread``.

    :raises OSError: a namespace cannot be created
    """
    if not namespaces.is_namespace(path):
        namespaces.enter_new_owned_namespace(user_path, ids)
        _mount_new(path)


def _mount_new(path: str) -> None:
    """Mount the calling thread's new namespace, ready for a server's devices, at ``path``."""
    network_link.write_sysctl("default", _GUEST_SYSCTL)
    marks.mark(path)
    namespaces.mount_namespace(path)


def is_owned_by(path: str, user_path: str) -> bool:
    """Return True if a user namespace owns a network namespace, and both are mounted."""
    if not namespaces.is_namespace(path) or not namespaces.is_namespace(user_path):
        return False
    with open(path, "rb") as network:
        owner = fcntl.ioctl(network, _NS_GET_USERNS)
    try:
        return os.path.samestat(os.fstat(owner), os.stat(user_path))
    finally:
        os.close(owner)


def unwire(host_device: str, bridge: Bridge | None) -> None:
    """Delete a veth pair by its host end, and its bridge if no other port uses it. Idempotent.

    :raises OSError: the kernel refuses
    """
    with Netlink() as host, network_bridge.lock:
        _delete_veth(host, host_device)
        if bridge is not None:
            network_bridge.remove_unused(host, bridge)


def silence(host_devices: Sequence[str]) -> None:
    """Set host devices down, so that the guest devices answer nothing.

    Addresses and routes of the guest devices stay; they lose their carrier. Ignores devices that
    do not exist.

    :raises OSError: the kernel refuses
    """
    with Netlink() as host:
        host.ask(*map(rtnetlink.take_down, host_devices), ignoring=errno.ENODEV)


def announce(path: str, guest_devices: Sequence[str]) -> None:
    """Announce the addresses of devices in the namespace at ``path``.

    The kernel sends gratuitous ARP (RFC 5227, section 3) and unsolicited neighbour advertisements
    (RFC 4861, section 7.2.6), see ``arp_notify`` and ``ndisc_notify`` in the kernel's ip-sysctl.
    Leaves the calling thread in that namespace: call it by ``namespaces.run_in_thread``.

    :raises OSError: the kernel refuses
    """
    namespaces.enter_namespace_at(path)
    with Netlink() as guest:
        devices = network_link.read_devices(guest, guest_devices).values()
        # Because the kernel announces addresses when a MAC address is set, even to the same value,
        # each device is given its own.
        guest.ask(*(rtnetlink.set_link(device.index, mac=device.mac) for device in devices))


@contextmanager
def _naming_port(nic: Nic) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WiringFailed(nic.port_id, str(error)) from error


@contextmanager
def _open_guest(path: str) -> Iterator[tuple[Netlink, bool]]:
    """Open a netlink socket in the namespace at ``path``, which is created if there is none.

    The body runs in the host's namespace, because a socket stays in the namespace in which it was
    opened. The second value is True if the namespace is new.
    """
    home = namespaces.open_namespace()
    try:
        if fresh := not namespaces.is_namespace(path):
            namespaces.enter_new_namespace()
            network_link.write_sysctl("default", _GUEST_SYSCTL)
        else:
            namespaces.enter_namespace_at(path)
        # Because nova-compute can be killed at any moment, a namespace is marked before its mount.
        marks.mark(path)
        with Netlink() as guest:
            if fresh:
                namespaces.mount_namespace(path)
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
    """Create the veth pair of a NIC, unless its two devices are the ends of one pair.

    Deletes other veth devices with one of the two names.

    :param namespace: file descriptor of the instance's namespace
    :param device: the device in the instance's namespace, or None
    :param bridge: index of the Linux bridge to put the host device into, or None
    :returns: True if the pair is new
    """
    link = None
    if device is not None:
        link = network_link.find_link(host, nic.host_device)
        if link is None or not _is_peer(host, link, namespace, device):
            network_link.delete_link(guest, device.index)
            link = None
    if link is None:
        _create_pair(host, namespace, nic, bridge)
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


def _create_pair(host: Netlink, namespace: int, nic: Nic, bridge: int | None) -> None:
    request = rtnetlink.add_veth(
        nic.host_device, nic.guest_device, namespace, nic.mac, nic.mtu, bridge
    )
    try:
        host.ask(request)
    except FileExistsError:
        # A veth device with this name exists, whose peer is not in the instance's namespace.
        _delete_veth(host, nic.host_device)
        host.ask(request)
    network_link.write_sysctl(nic.host_device, _HOST_SYSCTL)


def _is_peer(host: Netlink, link: Any, namespace: int, device: network_link.Device) -> bool:
    """Return True if a host device and a device in a namespace are the ends of one veth pair."""
    if link.get_attr("IFLA_LINK") != device.index or device.peer != link["index"]:
        return False
    ((known,),) = host.ask(rtnetlink.get_namespace_id(namespace))
    return bool(link.get_attr("IFLA_LINK_NETNSID") == known.get_attr("NETNSA_NSID"))


def _new_state(nics: Sequence[Nic]) -> network_link.State:
    """Return the state of new devices in the calling thread's namespace without reading it.

    Reading takes longer than creating the devices.
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


def _correct(
    guest: Netlink, nic: Nic, state: network_link.State, record: given.Record | None
) -> bool:
    """Apply a NIC's settings to its device.

    :returns: True if anything was removed, so that the state must be read again; the kernel has
        acknowledged every addition
    """
    with _naming_port(nic):
        changes = network_link.changes_of(nic, state, record)
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
            # Because the IPv6 link-local address of the old MAC address would stay, the device is
            # set down first.
            guest.ask(rtnetlink.set_link(index, up=False))
            guest.ask(rtnetlink.set_link(index, **{**changes.attributes, "up": True}))
        guest.ask(
            *([rtnetlink.set_link(index, **changes.attributes)] if changes.attributes else []),
            *(rtnetlink.add_address(index, address) for address in changes.missing_addresses),
        )
        # A tenant can have a route that ``read_state`` leaves out, as one of the type blackhole.
        guest.ask(
            *(
                rtnetlink.add_route(index, route, _is_near(nic, route), replace=record is None)
                for route in changes.missing_routes
            ),
            ignoring=None if record is None else errno.EEXIST,
        )
    return changes.removes


def _fill_in_checksums(nic: Nic) -> None:
    """Make the kernel complete the checksums of packets that leave the NIC.

    The calling thread is in the NIC's namespace.
    """
    with _naming_port(nic), closing(IoctlEthtool(nic.guest_device)) as device:
        # Because pyroute2 0.7.7 has the request but no function for it, the ioctl is called here.
        # Its function that sets features by name takes 30 times as long.
        device.ifreq.value = ctypes.pointer(EthtoolValue(cmd=ETHTOOL_STXCSUM, data=0))
        device.ioctl()


def _is_near(nic: Nic, route: Route) -> bool:
    """Return True if a route's gateway is in the subnet of an address of the NIC."""
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
        raise OSError(errno.EEXIST, "a device that is not a veth bears the name", name)
    network_link.delete_link(host, link["index"])
