# SPDX-License-Identifier: Apache-2.0
"""Privileged: the Linux bridges that host ends of veth pairs are put into, through netlink.

A bridge of ours leads to a network by an uplink: an interface of the host, or a VLAN
sub-interface of one. Both are made for the first port and removed after the last.
"""

import errno
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from novadocker.virt.docker import links
from novadocker.virt.docker.nics import Bridge, Nic

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
def joined(host: IPRoute, nic: Nic) -> Iterator[int | None]:
    """Make the bridge of a NIC and keep it while the body puts the host's end into it.

    Yields the bridge's index, None for a NIC without one.

    :raises OSError: see ``ensure_bridge``
    """
    if nic.bridge is None:
        yield None
    else:
        with lock:
            yield ensure_bridge(host, nic.bridge, nic.mtu)


def ensure_bridge(host: IPRoute, bridge: Bridge, mtu: int | None) -> int:
    """Make a bridge exist, up and with its uplink in it; return its index.

    :param mtu: bytes that the ports behind it send at most
    :raises OSError: the interface is absent, carries the host's own addresses or smaller packets,
        or belongs to another bridge; a device that is no bridge bears the name
    """
    uplink = None if bridge.interface is None else _ensure_uplink(host, bridge, mtu)
    if uplink is not None and links.kind_of(uplink) == "bridge":
        index: int = uplink["index"]
        return index
    link = links.find_link(host, bridge.name)
    if link is None:
        host.link("add", ifname=bridge.name, kind="bridge")
        # the host must not speak on a tenant's network
        with suppress(FileNotFoundError):
            Path(f"/proc/sys/net/ipv6/conf/{bridge.name}/disable_ipv6").write_text("1")
        link = links.find_link(host, bridge.name)
    elif links.kind_of(link) != "bridge":
        raise OSError(errno.EEXIST, "a device that is no bridge bears the name", bridge.name)
    index = link["index"]
    if not link["flags"] & links.IFF_UP:
        host.link("set", index=index, state="up")
    if uplink is not None:
        _ensure_port(host, uplink, index)
    return index


def remove_unused(host: IPRoute, bridge: Bridge) -> None:
    """Remove a bridge of ours, and its VLAN sub-interface, when only the uplink is left in it."""
    if bridge.interface is None:
        return
    uplink = bridge.interface
    if bridge.vlan is not None:
        uplink = vlan_device_name(bridge.interface, bridge.vlan)
    link = links.find_link(host, bridge.name)
    if link is not None and links.kind_of(link) == "bridge":
        ports = {port.get_attr("IFLA_IFNAME") for port in host.get_links(master=link["index"])}
        if ports - {uplink}:
            return
        _delete(host, link["index"])
    vlan = links.find_link(host, uplink)
    if bridge.vlan is not None and vlan is not None and links.kind_of(vlan) == "vlan":
        _delete(host, vlan["index"])


def _ensure_uplink(host: IPRoute, bridge: Bridge, mtu: int | None) -> Any:
    interface = links.find_link(host, bridge.interface or "")
    if interface is None:
        raise OSError(errno.ENODEV, "this host has no such interface", bridge.interface)
    carries = interface.get_attr("IFLA_MTU")
    if mtu and mtu > carries:
        raise OSError(
            errno.EMSGSIZE,
            f"the network's MTU of {mtu} is more than the {carries} of the interface",
            bridge.interface,
        )
    if not interface["flags"] & links.IFF_UP:
        host.link("set", index=interface["index"], state="up")
    if bridge.vlan is not None:
        return _ensure_vlan(host, interface, bridge)
    free = links.kind_of(interface) != "bridge" and not interface.get_attr("IFLA_MASTER")
    if free and any(host.get_addr(index=interface["index"], family=socket.AF_INET)):
        raise OSError(
            errno.EADDRINUSE,
            "the interface has addresses of the host, which a bridge would cut off",
            bridge.interface,
        )
    return interface


def _ensure_vlan(host: IPRoute, interface: Any, bridge: Bridge) -> Any:
    name = vlan_device_name(bridge.interface or "", bridge.vlan or 0)
    link = links.find_link(host, name)
    if link is None:
        host.link("add", ifname=name, kind="vlan", link=interface["index"], vlan_id=bridge.vlan)
        with suppress(FileNotFoundError):
            # the name has a dot, which only the path form of a sysctl can bear
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        link = links.find_link(host, name)
    elif (
        links.kind_of(link) != "vlan"
        or link.get_attr("IFLA_LINK") != interface["index"]
        or link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", "IFLA_VLAN_ID") != bridge.vlan
    ):
        raise OSError(errno.EEXIST, "a device that is not this VLAN's bears the name", name)
    if not link["flags"] & links.IFF_UP:
        host.link("set", index=link["index"], state="up")
    return link


def _ensure_port(host: IPRoute, uplink: Any, bridge_index: int) -> None:
    master = uplink.get_attr("IFLA_MASTER")
    if master == bridge_index:
        return
    if master:
        raise OSError(
            errno.EBUSY, "the interface is in another bridge", uplink.get_attr("IFLA_IFNAME")
        )
    host.link("set", index=uplink["index"], master=bridge_index)


def _delete(host: IPRoute, index: int) -> None:
    try:
        host.link("del", index=index)
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise OSError(error.code, os.strerror(error.code)) from error
