# SPDX-License-Identifier: Apache-2.0
"""The state of the network devices in a namespace, and its differences from the wanted NICs."""

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from novadocker.privsep.network import given, rtnetlink
from novadocker.privsep.network.rtnetlink import Netlink, Rule
from novadocker.privsep.network.types import Nic, Route

# the index of the loopback device in every network namespace
LOOPBACK = 1
# drivers/net/loopback.c: loopback_setup
_LOOPBACK_MTU = 65536
_LOOPBACK_ROUTES = (
    (rtnetlink.RTN_LOCAL, "127.0.0.0/8"),
    (rtnetlink.RTN_LOCAL, "127.0.0.1/32"),
    (rtnetlink.RTN_BROADCAST, "127.255.255.255/32"),
    (rtnetlink.RTN_LOCAL, "::1/128"),
)
# The rules of a new namespace (net/ipv4/fib_rules.c: fib_default_rules_init,
# net/ipv6/fib6_rules.c: fib6_rules_net_init, net/ipv4/ipmr.c and net/ipv6/ip6mr.c for multicast).
_RULES = (
    Rule(socket.AF_INET, 0, rtnetlink.TABLE_LOCAL),
    Rule(socket.AF_INET, 32766, rtnetlink.TABLE_MAIN),
    Rule(socket.AF_INET, 32767, rtnetlink.TABLE_DEFAULT),
    Rule(socket.AF_INET6, 0, rtnetlink.TABLE_LOCAL),
    Rule(socket.AF_INET6, 32766, rtnetlink.TABLE_MAIN),
    Rule(rtnetlink.FAMILY_IPMR, 32767, rtnetlink.TABLE_DEFAULT),
    Rule(rtnetlink.FAMILY_IP6MR, 32767, rtnetlink.TABLE_MAIN),
)
# What the kernel's own rules have; any other attribute is a selector or changes the action.
_PLAIN_ATTRIBUTES = frozenset(
    {"FRA_TABLE", "FRA_PRIORITY", "FRA_PROTOCOL", "FRA_SUPPRESS_PREFIXLEN"}
)
_SUPPRESS_NOTHING = 0xFFFFFFFF

# A tenant chooses the length of these lists. To read and delete one takes up to a second.
_MOST_SETTINGS = 2_000
_MOST_DEVICES = 100
# A server that runs may be a router. To read so many takes a few seconds, and so does to leave out
# fifty times as many routes of the tenant's.
_MOST_READ = 20_000

_LINK_LOCAL = ipaddress.ip_network("fe80::/64")
_MULTICAST = "ff00::/8"


# The type and the destination of a route.
_Kind = tuple[int, str]


@dataclass(frozen=True)
class Device:
    """The state of a device in an instance's namespace.

    :ivar peer: index of the other end of the veth pair, in the namespace of that end
    """

    index: int
    peer: int | None
    mac: str
    mtu: int
    up: bool


@dataclass(frozen=True)
class State:
    """The state of a namespace: devices by name, addresses and routes by device index.

    An address is written as ``192.0.2.5/24``, or as ``192.0.2.5/24 peer 192.0.2.6`` if the kernel
    has another address for the other end (``ip address add ... peer``).
    """

    devices: Mapping[str, Device]
    addresses: Mapping[int, frozenset[str]]
    routes: Mapping[int, frozenset[Route]]


@dataclass(frozen=True)
class Changes:
    """The differences between a device and its NIC.

    :ivar attributes: arguments of ``rtnetlink.set_link``
    """

    index: int
    attributes: Mapping[str, Any]
    extra_routes: frozenset[Route]
    extra_addresses: frozenset[str]
    missing_addresses: tuple[str, ...]
    missing_routes: tuple[Route, ...]

    @property
    def needed(self) -> bool:
        """True if there is any difference."""
        return bool(
            self.attributes
            or self.extra_routes
            or self.extra_addresses
            or self.missing_addresses
            or self.missing_routes
        )

    @property
    def removes(self) -> bool:
        """True if the changes remove anything; the kernel may then remove more, as routes."""
        return bool(self.extra_routes or self.extra_addresses or self.new_mac)

    @property
    def new_mac(self) -> bool:
        """True if the MAC address differs, for which the device is set down for a moment."""
        return "mac" in self.attributes


def changes_of(nic: Nic, state: State, record: given.Record | None = None) -> Changes:
    """Return the differences between a NIC and the state of its device. Pure.

    IPv6 link-local addresses are ignored, because the kernel adds them.

    :param record: what the devices were given before. All other addresses and routes are the
        tenant's and stay; a route stays in place of the NIC's to the same destination. None if
        there are none of the tenant's
    :raises OSError: the device does not exist
    """
    device = state.devices.get(nic.guest_device)
    if device is None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), nic.guest_device)
    addresses = state.addresses.get(device.index, frozenset())
    routes = state.routes.get(device.index, frozenset())
    extra_addresses = {
        address
        for address in addresses.difference(nic.addresses)
        if rtnetlink.interface_of(address).network != _LINK_LOCAL
    }
    extra_routes = {
        route
        for route in routes.difference(nic.routes)
        if route.destination not in nic.unknown_destinations
    }
    missing_routes = tuple(route for route in nic.routes if route not in routes)
    if record is not None:
        given_before = record.get(nic.guest_device, given.Given())
        own = {ipaddress.ip_interface(address).ip for address in nic.addresses}
        extra_addresses = {
            address
            for address in extra_addresses
            if address in given_before.addresses or rtnetlink.interface_of(address).ip in own
        }
        extra_routes &= given_before.routes
        taken = _tenants_destinations(state, record)
        missing_routes = tuple(r for r in missing_routes if r.destination not in taken)
    wanted = {"mac": nic.mac, "mtu": nic.mtu or device.mtu, "up": True}
    present = {"mac": device.mac, "mtu": device.mtu, "up": device.up}
    return Changes(
        index=device.index,
        attributes={key: value for key, value in wanted.items() if present[key] != value},
        extra_routes=frozenset(extra_routes),
        extra_addresses=frozenset(extra_addresses),
        missing_addresses=tuple(a for a in nic.addresses if a not in addresses),
        missing_routes=missing_routes,
    )


def _tenants_destinations(state: State, record: given.Record) -> set[str]:
    """Return the destinations of the routes that the driver did not add."""
    names = {device.index: name for name, device in state.devices.items()}
    nothing = given.Given()
    return {
        route.destination
        for index, routes in state.routes.items()
        for route in routes.difference(record.get(names.get(index, ""), nothing).routes)
    }


def read_state(guest: Netlink, nics: Iterable[Nic], record: given.Record | None) -> State:
    """Return the devices of NICs, all addresses, and the routes that the kernel did not add.

    :param record: as for ``changes_of``. With one, routes to other destinations than those of the
        NICs and of the record, which are the tenant's, are left out
    :raises TooManyError: there are more addresses or routes than this process reads
    """
    addresses: dict[int, set[str]] = {}
    for message in guest.dump(rtnetlink.list_addresses(), _MOST_READ):
        addresses.setdefault(message["index"], set()).add(_address(message))
    wanted, routes_to = list(nics), None
    if record is not None:
        known: list[Iterable[Route]] = [nic.routes for nic in wanted]
        known += [found.routes for found in record.values()]
        routes_to = {route.destination for some in known for route in some}
    routes: dict[int, set[Route]] = {}
    for message in guest.dump(rtnetlink.list_routes(), _MOST_READ, routes_to):
        if (
            message.get_attr("RTA_TABLE") == rtnetlink.TABLE_MAIN
            and message["type"] == rtnetlink.RTN_UNICAST
            and message["proto"] != rtnetlink.RTPROT_KERNEL
        ):
            route = Route(_destination(message), message.get_attr("RTA_GATEWAY"))
            routes.setdefault(message.get_attr("RTA_OIF"), set()).add(route)
    return State(
        devices=read_devices(guest, [nic.guest_device for nic in wanted]),
        addresses={index: frozenset(found) for index, found in addresses.items()},
        routes={index: frozenset(found) for index, found in routes.items()},
    )


def read_devices(guest: Netlink, names: Iterable[str]) -> dict[str, Device]:
    """Return the named devices of a namespace, without those that do not exist."""
    return {
        name: Device(
            index=link["index"],
            peer=link.get_attr("IFLA_LINK"),
            mac=link.get_attr("IFLA_ADDRESS"),
            mtu=link.get_attr("IFLA_MTU"),
            up=is_up(link),
        )
        for name, link in find_links(guest, names).items()
    }


def find_links(netlink: Netlink, names: Iterable[str]) -> dict[str, Any]:
    """Return the kernel's messages about devices by name, without those that do not exist."""
    wanted = tuple(names)
    asked = netlink.ask(*map(rtnetlink.get_link, wanted), ignoring=errno.ENODEV)
    return {name: link for name, found in zip(wanted, asked, strict=True) for link in found}


def find_link(netlink: Netlink, name: str) -> Any:
    """Return the kernel's message about a device, or None if the device does not exist."""
    return find_links(netlink, [name]).get(name)


def delete_link(netlink: Netlink, index: int) -> None:
    """Delete a device. Does nothing if it does not exist.

    The kernel may delete it at the same time, with the namespace of the other end.
    """
    netlink.ask(rtnetlink.delete_link(index), ignoring=errno.ENODEV)


def delete_others(guest: Netlink, names: Iterable[str]) -> None:
    """Delete the virtual devices of a namespace except the named ones. Idempotent.

    :raises TooManyError: there are more devices than this process deletes
    """
    kept = frozenset(names)
    for link in guest.dump(rtnetlink.list_links(), _MOST_DEVICES):
        # The loopback device has no type.
        if kind_of(link) is not None and link.get_attr("IFLA_IFNAME") not in kept:
            delete_link(guest, link["index"])


def delete_settings(guest: Netlink) -> None:
    """Replace what a tenant set beside the devices by what a new namespace has. Idempotent.

    That is the state and the addresses of the loopback device, routes to it or to no device, routes
    in other tables than the main one, and rules. A device that lacks an address or a route of the
    kernel's own is down afterwards, because the kernel adds them when the device is set up.

    :raises TooManyError: a list is longer than this process reads
    """
    addresses = guest.dump(rtnetlink.list_addresses(), _MOST_SETTINGS)
    routes = guest.dump(rtnetlink.list_routes(), _MOST_SETTINGS)
    rules = guest.dump(rtnetlink.list_rules(), _MOST_SETTINGS)
    if _is_new_loopback(guest, addresses, routes):
        routes = [route for route in routes if route.get_attr("RTA_OIF") != LOOPBACK]
    else:
        guest.ask(
            rtnetlink.set_link(LOOPBACK, up=False, mtu=_LOOPBACK_MTU),
            *(
                rtnetlink.delete_address(LOOPBACK, _address(message))
                for message in addresses
                if message["index"] == LOOPBACK
            ),
            ignoring=errno.EADDRNOTAVAIL,
        )
    forged, altered = _forged(addresses, routes)
    guest.ask(
        *(rtnetlink.set_link(device, up=False) for device in altered),
        *map(rtnetlink.delete_listed_route, [*filter(_is_beside, routes), *forged]),
        ignoring=errno.ESRCH,
    )
    for family in sorted({rule.family for rule in _RULES}):
        _restore_rules(guest, family, [rule for rule in rules if rule["family"] == family])


def _is_new_loopback(guest: Netlink, addresses: Iterable[Any], routes: Iterable[Any]) -> bool:
    """Return True if the loopback device is as in a new namespace; False if that is not sure."""
    device = read_devices(guest, ["lo"]).get("lo")
    found = {
        (route["type"], _destination(route), route["proto"], route.get_attr("RTA_TABLE"))
        for route in routes
        if route.get_attr("RTA_OIF") == LOOPBACK
    }
    own = {_address(message) for message in addresses if message["index"] == LOOPBACK}
    return (
        device is not None
        and (device.up, device.mtu) == (True, _LOOPBACK_MTU)
        and own == {"127.0.0.1/8", "::1/128"}
        and found
        == {
            (kind, destination, rtnetlink.RTPROT_KERNEL, rtnetlink.TABLE_LOCAL)
            for kind, destination in _LOOPBACK_ROUTES
        }
    )


def _is_beside(route: Any) -> bool:
    """Return True if a tenant set a route beside its devices."""
    device = route.get_attr("RTA_OIF")
    if device in (None, LOOPBACK):
        return True
    if route["proto"] == rtnetlink.RTPROT_KERNEL or _destination(route) == _MULTICAST:
        # Kernels before 5.11 name another source of the route for multicast.
        return False
    return bool(route.get_attr("RTA_TABLE") != rtnetlink.TABLE_MAIN)


def _forged(addresses: Sequence[Any], routes: Iterable[Any]) -> tuple[list[Any], set[int]]:
    """Return the routes that a tenant added in the kernel's name, and devices that need their own.

    The devices are those whose routes of the kernel a tenant deleted, or added a gateway to. A
    request to delete such a route can delete another one to the same destination.
    """
    needed: dict[int, set[_Kind]] = {}
    possible: dict[int, set[_Kind]] = {}
    for message in addresses:
        always, sometimes = _kernels_routes(_address(message))
        needed.setdefault(message["index"], set()).update(always)
        possible.setdefault(message["index"], set()).update(always | sometimes)
    forged, altered = [], set()
    for route in routes:
        device = route.get_attr("RTA_OIF")
        if route["proto"] != rtnetlink.RTPROT_KERNEL or device == LOOPBACK:
            continue
        kind = route["type"], _destination(route)
        if kind not in possible.get(device, ()):
            forged.append(route)
        elif any(route.get_attr(name) is not None for name in ("RTA_GATEWAY", "RTA_VIA")):
            altered.add(device)
        else:
            needed.get(device, set()).discard(kind)
        if device is None:
            altered |= {index for index, kinds in possible.items() if kind in kinds}
    altered |= {index for index, missing in needed.items() if missing}
    return forged, altered - {LOOPBACK}


def _kernels_routes(address: str) -> tuple[set[_Kind], set[_Kind]]:
    """Return the routes that the kernel always, and sometimes, adds with an address.

    See net/ipv4/fib_frontend.c, fib_add_ifaddr, and net/ipv6/addrconf.c.

    :param address: in the form of ``State``
    """
    own = rtnetlink.interface_of(address)
    other = address.partition(rtnetlink.PEER)[2] or str(own.ip)
    network = ipaddress.ip_network(f"{other}/{own.network.prefixlen}", strict=False)
    always = {(rtnetlink.RTN_LOCAL, f"{own.ip}/{own.max_prefixlen}")}
    if network.prefixlen < network.max_prefixlen:
        always.add((rtnetlink.RTN_UNICAST, str(network)))
    ends = (network[0], network[-1])
    if own.version == 4:
        sometimes = {(rtnetlink.RTN_BROADCAST, f"{end}/32") for end in ends}
    else:
        sometimes = {
            (rtnetlink.RTN_ANYCAST, f"{ends[0]}/128"),
            (rtnetlink.RTN_MULTICAST, _MULTICAST),
        }
    sometimes.add((rtnetlink.RTN_UNICAST, f"{other}/{network.max_prefixlen}"))
    if own.network == _LINK_LOCAL:
        # Duplicate address detection may go on.
        return set(), always | sometimes
    return always, sometimes


def _restore_rules(guest: Netlink, family: int, found: Sequence[Any]) -> None:
    """Replace the rules of a family by those of a new namespace, unless they are the same."""
    wanted = [rule for rule in _RULES if rule.family == family]
    if [rule_of(message) for message in found] == wanted:
        return
    # A request with a rule's selectors may match another rule before it, so each request has a
    # priority only: as many of a priority as there are rules of it.
    guest.ask(
        *(rtnetlink.delete_rule(family, rtnetlink.priority_of(message)) for message in found),
        ignoring=errno.ENOENT,
    )
    # The kernel may lack a family.
    guest.ask(*map(rtnetlink.add_rule, wanted), ignoring=errno.EAFNOSUPPORT)


def rule_of(message: Any) -> Rule | None:
    """Return a rule of the kernel's message; None if it has a selector or another action."""
    if (
        message["action"] != rtnetlink.FR_ACT_TO_TABLE
        or any(message[name] for name in ("src_len", "dst_len", "tos", "flags"))
        or not _PLAIN_ATTRIBUTES.issuperset(name for name, _ in message["attrs"])
        or message.get_attr("FRA_SUPPRESS_PREFIXLEN") not in (None, _SUPPRESS_NOTHING)
    ):
        return None
    return Rule(message["family"], rtnetlink.priority_of(message), message.get_attr("FRA_TABLE"))


def write_sysctl(device: str, values: Mapping[str, Mapping[str, str]]) -> None:
    """Set sysctls of a device by protocol, in the calling thread's namespace."""
    for protocol, settings in values.items():
        # A kernel without IPv6 lacks its sysctls.
        with suppress(FileNotFoundError):
            for key, value in settings.items():
                # Because a device's name can contain a dot, the path of the sysctl is used.
                Path(f"/proc/sys/net/{protocol}/conf/{device}/{key}").write_text(value)


def is_up(link: Any) -> bool:
    """Return True if a device is up."""
    return bool(link["flags"] & rtnetlink.IFF_UP)


def kind_of(link: Any) -> str | None:
    """Return the type of a device, such as ``veth`` or ``bridge``; None for hardware."""
    kind: str | None = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND")
    return kind


def _address(message: Any) -> str:
    """Return an address in the form of ``State``.

    The kernel omits an IPv4 address of 0.0.0.0, and has IFA_LOCAL of an IPv6 address only beside a
    peer (net/ipv4/devinet.c: inet_fill_ifaddr, net/ipv6/addrconf.c: inet6_fill_ifaddr).
    """
    other = message.get_attr("IFA_ADDRESS") or _unspecified(message)
    own = message.get_attr("IFA_LOCAL")
    if own is None:
        own = _unspecified(message) if message["family"] == socket.AF_INET else other
    address = str(ipaddress.ip_interface(f"{own}/{message['prefixlen']}"))
    return address if other == own else f"{address}{rtnetlink.PEER}{other}"


def _destination(message: Any) -> str:
    return f"{message.get_attr('RTA_DST') or _unspecified(message)}/{message['dst_len']}"


def _unspecified(message: Any) -> str:
    return "0.0.0.0" if message["family"] == socket.AF_INET else "::"
