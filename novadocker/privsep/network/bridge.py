# SPDX-License-Identifier: Apache-2.0
"""Privileged: the Linux bridges that host ends of veth pairs are put into, through netlink.

A bridge of ours leads to a network by an uplink: an interface of the host, or a VLAN
sub-interface of one. Both are made for the first port and removed after the last.
"""

import errno
import hashlib
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from novadocker.privsep.network import link as network_link
from novadocker.privsep.network import rtnetlink
from novadocker.privsep.network.rtnetlink import Netlink
from novadocker.privsep.network.types import Bridge, Nic

# linux/if.h, without the terminating NUL
_NAME_LENGTH = 15

# held while ports come and go, so that nobody removes a bridge that another is about to use
lock = threading.RLock()


def vlan_device_name(interface: str, vlan: int) -> str:
    """Return the name of a VLAN sub-interface, ``eth1.100`` where that is short enough."""
    name = f"{interface}.{vlan}"
    if len(name) <= _NAME_LENGTH:
        return name
    return f"v{hashlib.sha256(interface.encode()).hexdigest()[:8]}.{vlan}"


@contextmanager
def joined(host: Netlink, nic: Nic) -> Iterator[int | None]:
    """Make the bridge of a NIC and keep it while the body puts the host's end into it.

    Yields the bridge's index, None for a NIC without one.

    :raises OSError: see ``ensure_bridge``
    """
    if nic.bridge is None:
        yield None
    else:
        with lock:
            yield ensure_bridge(host, nic.bridge, nic.mtu)


def ensure_bridge(host: Netlink, bridge: Bridge, mtu: int | None) -> int:
    """Make a bridge exist, up and with its uplink in it; return its index.

    :param mtu: bytes that the ports behind it send at most
    :raises OSError: the interface is absent, carries the host's own addresses or smaller packets,
        or belongs to another bridge; a device that is no bridge bears the name
    """
    names = {bridge.interface, _uplink_name(bridge), bridge.name}
    found = network_link.find_links(host, filter(None, names))
    uplink = None if bridge.interface is None else _ensure_uplink(host, bridge, mtu, found)
    if uplink is not None and network_link.kind_of(uplink) == "bridge":
        index: int = uplink["index"]
        return index
    link = found.get(bridge.name)
    if link is None:
        link = _make(host, bridge.name, rtnetlink.add_bridge(bridge.name))
    elif network_link.kind_of(link) != "bridge":
        raise OSError(errno.EEXIST, "a device that is no bridge bears the name", bridge.name)
    index = link["index"]
    if not network_link.is_up(link):
        host.ask(rtnetlink.set_link(index, up=True))
    if uplink is not None:
        _ensure_port(host, uplink, index)
    return index


def remove_unused(host: Netlink, bridge: Bridge) -> None:
    """Remove a bridge of ours, and its VLAN sub-interface, when only the uplink is left in it."""
    if bridge.interface is None:
        return
    uplink = _uplink_name(bridge)
    found = network_link.find_links(host, filter(None, (bridge.name, uplink)))
    link = found.get(bridge.name)
    if link is not None and network_link.kind_of(link) == "bridge":
        ports = {
            port.get_attr("IFLA_IFNAME")
            for port in host.dump(rtnetlink.list_links(master=link["index"]))
            if port.get_attr("IFLA_MASTER") == link["index"]
        }
        if ports - {uplink}:
            return
        network_link.delete_link(host, link["index"])
    vlan = found.get(uplink or "")
    if bridge.vlan is not None and vlan is not None and network_link.kind_of(vlan) == "vlan":
        network_link.delete_link(host, vlan["index"])


def _uplink_name(bridge: Bridge) -> str | None:
    if bridge.interface is None or bridge.vlan is None:
        return bridge.interface
    return vlan_device_name(bridge.interface, bridge.vlan)


def _ensure_uplink(host: Netlink, bridge: Bridge, mtu: int | None, found: Mapping[str, Any]) -> Any:
    interface = found.get(bridge.interface or "")
    if interface is None:
        raise OSError(errno.ENODEV, "this host has no such interface", bridge.interface)
    carries = interface.get_attr("IFLA_MTU")
    if mtu and mtu > carries:
        raise OSError(
            errno.EMSGSIZE,
            f"the network's MTU of {mtu} is more than the {carries} of the interface",
            bridge.interface,
        )
    if not network_link.is_up(interface):
        host.ask(rtnetlink.set_link(interface["index"], up=True))
    if bridge.vlan is not None:
        return _ensure_vlan(host, interface, bridge.vlan, _uplink_name(bridge) or "", found)
    free = network_link.kind_of(interface) != "bridge" and not interface.get_attr("IFLA_MASTER")
    if free and any(
        address["index"] == interface["index"] and address["family"] == socket.AF_INET
        for address in host.dump(rtnetlink.list_addresses())
    ):
        raise OSError(
            errno.EADDRINUSE,
            "the interface has addresses of the host, which a bridge would cut off",
            bridge.interface,
        )
    return interface


def _ensure_vlan(
    host: Netlink, interface: Any, vlan: int, name: str, found: Mapping[str, Any]
) -> Any:
    link = found.get(name)
    if link is None:
        link = _make(host, name, rtnetlink.add_vlan(name, interface["index"], vlan))
    elif (
        network_link.kind_of(link) != "vlan"
        or link.get_attr("IFLA_LINK") != interface["index"]
        or link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", "IFLA_VLAN_ID") != vlan
    ):
        raise OSError(errno.EEXIST, "a device that is not this VLAN's bears the name", name)
    if not network_link.is_up(link):
        host.ask(rtnetlink.set_link(link["index"], up=True))
    return link


def _make(host: Netlink, name: str, request: Any) -> Any:
    """Make a device by which the host does not speak on a tenant's network."""
    host.ask(request)
    with suppress(FileNotFoundError):
        # the name can have a dot, which only the path form of a sysctl can bear
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    return network_link.find_link(host, name)


def _ensure_port(host: Netlink, uplink: Any, bridge_index: int) -> None:
    master = uplink.get_attr("IFLA_MASTER")
    if master == bridge_index:
        return
    if master:
        raise OSError(
            errno.EBUSY, "the interface is in another bridge", uplink.get_attr("IFLA_IFNAME")
        )
    host.ask(rtnetlink.set_link(uplink["index"], master=bridge_index))
