# SPDX-License-Identifier: Apache-2.0
"""What the kernel shows of the network devices in a namespace, and how it differs from a NIC."""

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute

from novadocker.virt.docker.nics import Nic, Route

# linux/if.h, linux/rtnetlink.h
IFF_UP = 1
TABLE_MAIN = 254
_RTN_UNICAST = 1
_RTPROT_KERNEL = 2

_LINK_LOCAL = ipaddress.ip_network("fe80::/64")


@dataclass(frozen=True)
class Device:
    """What the kernel shows of a device in the instance's namespace.

    :ivar peer: index of the other end, in that end's namespace
    """

    index: int
    peer: int | None
    mac: str
    mtu: int
    up: bool


@dataclass(frozen=True)
class State:
    """What the kernel shows of a namespace: by device name, and by device index."""

    devices: Mapping[str, Device]
    addresses: Mapping[int, frozenset[str]]
    routes: Mapping[int, frozenset[Route]]


@dataclass(frozen=True)
class Changes:
    """What one device lacks, has too much or has wrong."""

    index: int
    attributes: Mapping[str, Any]
    extra_routes: frozenset[Route]
    extra_addresses: frozenset[str]
    missing_addresses: tuple[str, ...]
    missing_routes: tuple[Route, ...]

    @property
    def needed(self) -> bool:
        """Whether there is any."""
        return bool(
            self.attributes
            or self.extra_routes
            or self.extra_addresses
            or self.missing_addresses
            or self.missing_routes
        )


def changes_of(nic: Nic, state: State) -> Changes:
    """Pure: compare what a NIC must be with what the kernel shows.

    An IPv6 link-local address and the subnets of addresses are the kernel's own.
    """
    device = state.devices[nic.guest_device]
    addresses = state.addresses.get(device.index, frozenset())
    routes = state.routes.get(device.index, frozenset())
    wanted = {"address": nic.mac, "mtu": nic.mtu or device.mtu, "state": "up"}
    present = {
        "address": device.mac,
        "mtu": device.mtu,
        "state": "up" if device.up else "down",
    }
    return Changes(
        index=device.index,
        attributes={key: value for key, value in wanted.items() if present[key] != value},
        extra_routes=routes.difference(nic.routes),
        extra_addresses=frozenset(
            address
            for address in addresses.difference(nic.addresses)
            if ipaddress.ip_interface(address).network != _LINK_LOCAL
        ),
        missing_addresses=tuple(a for a in nic.addresses if a not in addresses),
        missing_routes=tuple(r for r in nic.routes if r not in routes),
    )


def read_state(guest: IPRoute) -> State:
    """Read all of a namespace; of its routes, those that the kernel did not add by itself."""
    addresses: dict[int, set[str]] = {}
    for message in guest.get_addr():
        address = f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}"
        addresses.setdefault(message["index"], set()).add(str(ipaddress.ip_interface(address)))
    routes: dict[int, set[Route]] = {}
    for message in guest.get_routes():
        if (
            message.get_attr("RTA_TABLE") == TABLE_MAIN
            and message["type"] == _RTN_UNICAST
            and message["proto"] != _RTPROT_KERNEL
        ):
            route = Route(_destination(message), message.get_attr("RTA_GATEWAY"))
            routes.setdefault(message.get_attr("RTA_OIF"), set()).add(route)
    return State(
        devices=read_devices(guest),
        addresses={index: frozenset(found) for index, found in addresses.items()},
        routes={index: frozenset(found) for index, found in routes.items()},
    )


def read_devices(guest: IPRoute) -> dict[str, Device]:
    """Read the devices of a namespace, by name."""
    return {
        message.get_attr("IFLA_IFNAME"): Device(
            index=message["index"],
            peer=message.get_attr("IFLA_LINK"),
            mac=message.get_attr("IFLA_ADDRESS"),
            mtu=message.get_attr("IFLA_MTU"),
            up=bool(message["flags"] & IFF_UP),
        )
        for message in guest.get_links()
    }


def _destination(message: Any) -> str:
    anything = "0.0.0.0" if message["family"] == socket.AF_INET else "::"
    return f"{message.get_attr('RTA_DST') or anything}/{message['dst_len']}"
