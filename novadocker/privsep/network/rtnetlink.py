# SPDX-License-Identifier: Apache-2.0
"""Requests to the kernel's rtnetlink(7), and a socket that sends several of them at once.

pyroute2 encodes and decodes the messages.
"""

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from pyroute2.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    rtnl,
)
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.marshal import MarshalRtnl
from pyroute2.netlink.rtnl.nsidmsg import nsidmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from novadocker.privsep.network.types import Route

# linux/if.h, linux/if_addr.h, linux/rtnetlink.h
IFF_UP = 1
_IFA_F_NODAD = 2
FAMILY_IPMR = 128
FAMILY_IP6MR = 129
TABLE_MAIN = 254
TABLE_LOCAL = 255
TABLE_DEFAULT = 253
RTN_UNICAST = 1
RTN_LOCAL = 2
RTN_BROADCAST = 3
RTN_ANYCAST = 4
RTN_MULTICAST = 5
RTPROT_KERNEL = 2
# linux/fib_rules.h
FR_ACT_TO_TABLE = 1
_RTN_UNSPEC = 0
_RTNH_F_ONLINK = 4
_RTPROT_UNSPEC = 0
_RTPROT_STATIC = 4
_RT_SCOPE_UNIVERSE = 0
_RT_SCOPE_LINK = 253
_RT_SCOPE_NOWHERE = 255


class Rule(NamedTuple):
    """A rule without a selector: all packets look up a table."""

    family: int
    priority: int
    table: int


PEER = " peer "
"""Separates an address from that of the other end, as in iproute2."""

_NEW = NLM_F_CREATE | NLM_F_EXCL
_NEW_OR_OTHER = NLM_F_CREATE | NLM_F_REPLACE

# linux/netlink.h
_NETLINK_ROUTE = 0
# Because a socket's buffer has usually 208 KiB, it holds the answers to this number of requests.
_MOST_AT_ONCE = 16
_LARGEST_ANSWER = 1 << 16
# linux/netlink.h: struct nlmsghdr, of which the fields after the flags are not read here
_LENGTH = struct.Struct("=I")
_HEADER = struct.Struct("=IHH")
_HEADER_BYTES = 16
# linux/rtnetlink.h: struct rtmsg and struct rtattr
_ROUTE_BYTES = 12
_ATTRIBUTE = struct.Struct("=HH")
_RTA_DST = 1
# A message takes so much longer to parse than to leave out.
_LEFT_OUT_PER_PARSED = 50
# the number of attempts to list objects that change meanwhile
_DUMPS = 5


class TooManyError(OSError):
    """A list of the kernel is longer than its reader accepts."""

    def __init__(self, most: int) -> None:
        super().__init__(errno.E2BIG, f"a list of the kernel has more than {most} entries")


class Netlink:
    """A socket of rtnetlink in the network namespace that the thread is in when it is opened.

    The socket stays in that namespace when the thread enters another.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE)
        self._parser = MarshalRtnl()

    def __enter__(self) -> "Netlink":
        """Return the socket itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the socket."""
        self._socket.close()

    def ask(self, *requests: Any, ignoring: int | None = None) -> list[list[Any]]:
        """Send requests, which the kernel carries out in this order; return the answers to each.

        A request that the kernel refuses does not prevent the others.

        :param requests: of the functions of this module; a request of a list must be the only one
        :param ignoring: an error number that is not raised
        :raises OSError: the first refusal
        """
        answers: list[list[Any]] = []
        refusals: list[int] = []
        left = iter(requests)
        while some := list(islice(left, _MOST_AT_ONCE)):
            self._send(some)
            found, codes = self._receive(len(some))
            answers += found
            refusals += codes
        for code in refusals:
            if code not in (0, ignoring):
                raise OSError(code, os.strerror(code))
        return answers

    def dump(
        self, request: Any, most: int | None = None, routes_to: Iterable[str] | None = None
    ) -> list[Any]:
        """Return all messages that answer the request of a list.

        :param most: the longest list to read; None for a list that no tenant can lengthen
        :param routes_to: the only destinations of the list's routes; others count little for
            ``most``. None for a list of anything
        :raises TooManyError: the list is longer. Close the socket, because the rest is in it
        :raises OSError: the kernel refuses, or the list changes during each attempt
        """
        keep = None if routes_to is None else _Destinations(routes_to).contains
        for _ in range(_DUMPS):
            self._send([request])
            ((*found, end),), (code,) = self._receive(1, most, keep)
            if code:
                raise OSError(code, os.strerror(code))
            # Because a change during the dump can make the kernel skip unchanged objects, such a
            # dump is repeated.
            if not any(message["header"]["flags"] & NLM_F_DUMP_INTR for message in (*found, end)):
                return found
        raise InterruptedError("the kernel's list changed during each attempt")

    def _send(self, requests: Sequence[Any]) -> None:
        encoded = bytearray()
        for number, request in enumerate(requests):
            request["header"]["sequence_number"] = number
            request["header"]["pid"] = 0
            request.reset()
            request.encode()
            encoded += request.data
        self._socket.send(encoded)

    def _receive(
        self,
        count: int,
        most: int | None = None,
        keep: Callable[[memoryview], bool] | None = None,
    ) -> tuple[list[list[Any]], list[int]]:
        """Return the answers to requests, and the error number of each, 0 for success.

        :param most: of the answers to a request
        :param keep: returns True for an answer to parse, by its bytes
        """
        answers: list[list[Any]] = [[] for _ in range(count)]
        codes: dict[int, int] = {}
        left_out = 0
        while len(codes) < count:
            data = self._socket.recv(_LARGEST_ANSWER)
            if keep is not None:
                parts = list(_messages(memoryview(data)))
                kept = list(filter(keep, parts))
                left_out += len(parts) - len(kept)
                data = b"".join(kept)
            for message in self._parser.parse(data):
                header = message["header"]
                number = header["sequence_number"]
                if header["type"] == NLMSG_ERROR:
                    codes[number] = abs(message["error"])
                else:
                    answers[number].append(message)
                    if header["type"] == NLMSG_DONE:
                        codes[number] = 0
                    elif most is not None and len(answers[number]) > most:
                        raise TooManyError(most)
            if most is not None and left_out > most * _LEFT_OUT_PER_PARSED:
                raise TooManyError(most * _LEFT_OUT_PER_PARSED)
        return answers, [codes[number] for number in range(count)]


def _messages(data: memoryview) -> Iterator[memoryview]:
    """Yield each message of an answer, with its padding."""
    place = 0
    while place < len(data):
        (length,) = _LENGTH.unpack_from(data, place)
        end = place + _aligned(length)
        yield data[place:end]
        place = end


def _aligned(length: int) -> int:
    # linux/netlink.h: NLMSG_ALIGN; at least one byte of progress, whatever is received
    return max(length + 3 & ~3, 4)


class _Destinations:
    """Destinations of routes in the kernel's encoding.

    pyroute2 takes 0.1 ms for a message, so a router's hundreds of thousands are not parsed.
    """

    def __init__(self, destinations: Iterable[str]) -> None:
        self._wanted = set()
        for network in map(ipaddress.ip_network, destinations):
            # The kernel omits the address of a default route.
            packed = network.network_address.packed if network.prefixlen else b""
            self._wanted.add((_family(network.version), network.prefixlen, packed))
        self._lengths = {(family, length) for family, length, _ in self._wanted}

    def contains(self, message: memoryview) -> bool:
        """Return True unless a message is of a route to another destination."""
        _, kind, flags = _HEADER.unpack_from(message)
        if kind != rtnl.RTM_NEWROUTE or flags & NLM_F_DUMP_INTR:
            return True
        family, length = message[_HEADER_BYTES], message[_HEADER_BYTES + 1]
        if (family, length) not in self._lengths:
            return False
        place, packed = _HEADER_BYTES + _ROUTE_BYTES, b""
        while place + _ATTRIBUTE.size <= len(message):
            size, attribute = _ATTRIBUTE.unpack_from(message, place)
            if attribute == _RTA_DST:
                packed = bytes(message[place + _ATTRIBUTE.size : place + size])
            place += _aligned(size)
        return (family, length, packed) in self._wanted


def get_link(name: str) -> Any:
    """Return a request of a device by name."""
    return _link(rtnl.RTM_GETLINK, {"IFLA_IFNAME": name})


def get_namespace_id(descriptor: int) -> Any:
    """Return a request of the id of another namespace, of which this is a file descriptor."""
    return _request(nsidmsg, rtnl.RTM_GETNSID, {"NETNSA_FD": descriptor})


def list_links(master: int | None = None) -> Any:
    """Return a request of all devices of the namespace.

    :param master: index of a Linux bridge, to list only the devices in it; kernels without this
        filter list all devices
    """
    return _link(rtnl.RTM_GETLINK, {} if master is None else {"IFLA_MASTER": master}, NLM_F_DUMP)


def list_addresses() -> Any:
    """Return a request of all addresses of the namespace."""
    return _request(ifaddrmsg, rtnl.RTM_GETADDR, {}, NLM_F_DUMP, family=socket.AF_UNSPEC)


def list_routes() -> Any:
    """Return a request of all routes of the namespace."""
    return _request(rtmsg, rtnl.RTM_GETROUTE, {}, NLM_F_DUMP, family=socket.AF_UNSPEC)


def list_rules() -> Any:
    """Return a request of all rules that choose a table of routes (ip-rule(8))."""
    return _request(fibmsg, rtnl.RTM_GETRULE, {}, NLM_F_DUMP, family=socket.AF_UNSPEC)


def list_qdiscs() -> Any:
    """Return a request of the queueing disciplines of all devices of the namespace."""
    return _request(tcmsg, rtnl.RTM_GETQDISC, {}, NLM_F_DUMP, family=socket.AF_UNSPEC)


def add_veth(
    name: str, peer: str, namespace: int, mac: str, mtu: int | None, bridge: int | None
) -> Any:
    """Return a request that creates a veth pair and sets its first end up.

    The first end has no carrier, and sends nothing, until the other end is up.

    :param peer: name of the other end
    :param namespace: file descriptor of the namespace of the other end
    :param mac: MAC address of the other end
    :param bridge: index of the Linux bridge for the first end, or None
    """
    size = {} if mtu is None else {"IFLA_MTU": mtu}
    other = {"IFLA_IFNAME": peer, "IFLA_ADDRESS": mac, "IFLA_NET_NS_FD": namespace, **size}
    master = {} if bridge is None else {"IFLA_MASTER": bridge}
    kind = _kind("veth", {"VETH_INFO_PEER": {"attrs": list(other.items())}})
    attributes = {"IFLA_IFNAME": name, **size, **master, "IFLA_LINKINFO": kind}
    return _link(rtnl.RTM_NEWLINK, attributes, _NEW, flags=IFF_UP, change=IFF_UP)


def add_bridge(name: str) -> Any:
    """Return a request that creates a Linux bridge."""
    return _link(
        rtnl.RTM_NEWLINK, {"IFLA_IFNAME": name, "IFLA_LINKINFO": _kind("bridge", {})}, _NEW
    )


def add_vlan(name: str, interface: int, vlan: int) -> Any:
    """Return a request that creates a VLAN sub-interface.

    :param interface: index of its interface
    """
    kind = _kind("vlan", {"IFLA_VLAN_ID": vlan})
    attributes = {"IFLA_IFNAME": name, "IFLA_LINK": interface, "IFLA_LINKINFO": kind}
    return _link(rtnl.RTM_NEWLINK, attributes, _NEW)


def set_link(
    index: int,
    *,
    mac: str | None = None,
    mtu: int | None = None,
    master: int | None = None,
    up: bool | None = None,
) -> Any:
    """Return a request that changes a device; values of None stay unchanged.

    :param master: index of the Linux bridge to put the device into
    """
    wanted = {"IFLA_ADDRESS": mac, "IFLA_MTU": mtu, "IFLA_MASTER": master}
    attributes = {name: value for name, value in wanted.items() if value is not None}
    return _link(
        rtnl.RTM_NEWLINK,
        attributes,
        index=index,
        flags=IFF_UP if up else 0,
        change=0 if up is None else IFF_UP,
    )


def take_down(name: str) -> Any:
    """Return a request that sets a device down, by name."""
    return _link(rtnl.RTM_NEWLINK, {"IFLA_IFNAME": name}, flags=0, change=IFF_UP)


def delete_link(index: int) -> Any:
    """Return a request that deletes a device, and its peer if it has one."""
    return _link(rtnl.RTM_DELLINK, {}, index=index)


def add_address(index: int, address: str) -> Any:
    """Return a request that adds an address, as ``192.0.2.5/24``, usable at once."""
    return _address(rtnl.RTM_NEWADDR, _NEW, index, address)


def delete_address(index: int, address: str) -> Any:
    """Return a request that deletes an address of a device.

    :param address: as ``192.0.2.5/24`` or ``192.0.2.5/24 peer 192.0.2.6``
    """
    return _address(rtnl.RTM_DELADDR, 0, index, address)


def add_route(index: int, route: Route, near: bool, replace: bool) -> Any:
    """Return a request that adds a route to a device.

    :param near: True if the gateway is in the subnet of an address of the device
    :param replace: True if the route replaces another to the destination, of any device and type;
        otherwise the kernel then refuses it with EEXIST
    """
    on_link_only = route.gateway is None and ipaddress.ip_network(route.destination).version == 4
    return _route(
        rtnl.RTM_NEWROUTE,
        _NEW_OR_OTHER if replace else _NEW,
        index,
        route,
        proto=_RTPROT_STATIC,
        type=RTN_UNICAST,
        scope=_RT_SCOPE_LINK if on_link_only else _RT_SCOPE_UNIVERSE,
        flags=0 if near else _RTNH_F_ONLINK,
    )


def delete_route(index: int, route: Route) -> Any:
    """Return a request that deletes a route of a device, of any protocol, type and scope."""
    return _route(
        rtnl.RTM_DELROUTE,
        0,
        index,
        route,
        proto=_RTPROT_UNSPEC,
        type=_RTN_UNSPEC,
        scope=_RT_SCOPE_NOWHERE,
        flags=0,
    )


def delete_listed_route(route: Any) -> Any:
    """Return a request that deletes a route, of which this is the kernel's message.

    It names type and protocol, so that the kernel's own route to the same destination stays.
    """
    named = {name: route.get_attr(name) for name in ("RTA_DST", "RTA_PRIORITY", "RTA_TABLE")}
    return _request(
        rtmsg,
        rtnl.RTM_DELROUTE,
        {name: value for name, value in named.items() if value is not None},
        family=route["family"],
        dst_len=route["dst_len"],
        tos=route["tos"],
        table=route["table"],
        type=route["type"],
        proto=route["proto"],
        scope=_RT_SCOPE_NOWHERE,
    )


def add_rule(rule: Rule) -> Any:
    """Return a request that adds a rule as the kernel's own."""
    attributes = {
        "FRA_PRIORITY": rule.priority,
        "FRA_TABLE": rule.table,
        "FRA_PROTOCOL": RTPROT_KERNEL,
    }
    return _request(
        fibmsg,
        rtnl.RTM_NEWRULE,
        attributes,
        _NEW,
        family=rule.family,
        table=rule.table,
        action=FR_ACT_TO_TABLE,
    )


def delete_rule(family: int, priority: int) -> Any:
    """Return a request that deletes the first rule of a priority."""
    return _request(fibmsg, rtnl.RTM_DELRULE, {"FRA_PRIORITY": priority}, family=family)


def priority_of(rule: Any) -> int:
    """Return the priority of a rule."""
    return int(rule.get_attr("FRA_PRIORITY") or 0)


def interface_of(address: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    """Return an address without that of the other end."""
    return ipaddress.ip_interface(address.partition(PEER)[0])


def _link(command: int, attributes: Mapping[str, Any], how: int = 0, **fields: int) -> Any:
    return _request(ifinfmsg, command, attributes, how, **fields)


def _kind(kind: str, data: Mapping[str, Any]) -> Any:
    return {"attrs": [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": list(data.items())})]}


def _address(command: int, how: int, index: int, address: str) -> Any:
    interface = interface_of(address)
    own = str(interface.ip)
    return _request(
        ifaddrmsg,
        command,
        {"IFA_LOCAL": own, "IFA_ADDRESS": address.partition(PEER)[2] or own},
        how,
        family=_family(interface.version),
        prefixlen=interface.network.prefixlen,
        # Because the kernel would delay an IPv6 address for duplicate address detection, it is
        # disabled for the address.
        flags=_IFA_F_NODAD if interface.version == 6 else 0,
        index=index,
    )


def _route(command: int, how: int, index: int, route: Route, **fields: int) -> Any:
    network = ipaddress.ip_network(route.destination)
    attributes: dict[str, Any] = {"RTA_DST": str(network.network_address), "RTA_OIF": index}
    if route.gateway is not None:
        attributes["RTA_GATEWAY"] = route.gateway
    return _request(
        rtmsg,
        command,
        attributes,
        how,
        family=_family(network.version),
        dst_len=network.prefixlen,
        table=TABLE_MAIN,
        **fields,
    )


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _request(
    form: Any, command: int, attributes: Mapping[str, Any], how: int = 0, **fields: int
) -> Any:
    request = form()
    for name, value in fields.items():
        request[name] = value
    request["attrs"] = list(attributes.items())
    request["header"]["type"] = command
    request["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | how
    return request
