# SPDX-License-Identifier: Apache-2.0
"""Privileged: create and delete the Linux bridges of host devices, through netlink.

A bridge of novadocker reaches its network by an uplink: an interface of the host, or a VLAN
sub-interface. Bridge and sub-interface are created for the first port and deleted after the last.
"""

import errno
import hashlib
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from novadocker.privsep.network import link as network_link
from novadocker.privsep.network import rtnetlink
from novadocker.privsep.network.rtnetlink import Netlink
from novadocker.privsep.network.types import Bridge, Nic

# linux/if.h: IFNAMSIZ, without the terminating NUL
_NAME_LENGTH = 15
# linux/rtnetlink.h: RT_SCOPE_LINK
_SCOPE_LINK = 253
# Because the interface stays up after its last port, no router may give it an address then.
_INTERFACE_SYSCTL = {"ipv6": {"accept_ra": "0", "autoconf": "0"}}
_CREATED_SYSCTL = {"ipv6": {"disable_ipv6": "1"}}

# Because a bridge is deleted with its last port, this lock is held while ports are put into
# bridges and deleted: no call deletes a bridge into which another call is about to put a port.
lock = threading.RLock()


def vlan_device_name(interface: str, vlan: int) -> str:
    """Return the name of a VLAN sub-interface: ``eth1.100``, or a hash if that is too long."""
    name = f"{interface}.{vlan}"
    if len(name) <= _NAME_LENGTH:
        return name
    return f"v{hashlib.sha256(interface.encode()).hexdigest()[:8]}.{vlan}"


@contextmanager
def joined(host: Netlink, nic: Nic) -> Iterator[int | None]:
    """Create the bridge of a NIC and keep it while the body puts the host device into it.

    Yields the index of the bridge, or None if the NIC has no bridge.

    :raises OSError: see ``ensure_bridge``
    """
    if nic.bridge is None:
        yield None
    else:
        with lock:
            yield ensure_bridge(host, nic.bridge, nic.mtu)


def ensure_bridge(host: Netlink, bridge: Bridge, mtu: int | None) -> int:
    """Create a bridge, set it up and put its uplink into it; return its index. Idempotent.

    Returns the index of the interface instead if the interface is itself a bridge.

    :param mtu: the largest packet of the bridge's ports, in bytes
    :raises OSError: the interface is absent, has addresses of the host or a smaller MTU, or is in
        another bridge; or a device of another type bears the name
    """
    names = {bridge.interface, _uplink_name(bridge), bridge.name}
    found = network_link.find_links(host, filter(None, names))
    uplink = None if bridge.interface is None else _ensure_uplink(host, bridge, mtu, found)
    if uplink is not None and network_link.kind_of(uplink) == "bridge":
        index: int = uplink["index"]
        return index
    link = found.get(bridge.name)
    if link is None:
        link = _create(host, bridge.name, rtnetlink.add_bridge(bridge.name))
    elif network_link.kind_of(link) != "bridge":
        raise OSError(errno.EEXIST, "a device that is not a bridge bears the name", bridge.name)
    index = link["index"]
    if not network_link.is_up(link):
        host.ask(rtnetlink.set_link(index, up=True))
    if uplink is not None:
        _ensure_port(host, uplink, index)
    return index


def remove_unused(host: Netlink, bridge: Bridge) -> None:
    """Delete a bridge of novadocker and its VLAN sub-interface if the uplink is its only port.

    Does nothing for a bridge without an interface, because Neutron or os-vif created it.
    """
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
        raise OSError(errno.ENODEV, "the host has no such interface", bridge.interface)
    carries = interface.get_attr("IFLA_MTU")
    if mtu and mtu > carries:
        raise OSError(
            errno.EMSGSIZE,
            f"the network's MTU of {mtu} is more than the interface's {carries}",
            bridge.interface,
        )
    up = network_link.is_up(interface)
    free = network_link.kind_of(interface) != "bridge" and not interface.get_attr("IFLA_MASTER")
    if free and (bridge.vlan is None or not up):
        _take(host, interface, bridge)
    if not up:
        host.ask(rtnetlink.set_link(interface["index"], up=True))
    if bridge.vlan is not None:
        return _ensure_vlan(host, interface, bridge.vlan, _uplink_name(bridge) or "", found)
    return interface


def _take(host: Netlink, interface: Any, bridge: Bridge) -> None:
    """Disable router advertisements on an interface that has no address of the host.

    :raises OSError: the interface has such an address, and is to become a port of the bridge
    """
    name = interface.get_attr("IFLA_IFNAME")
    if not any(
        address["index"] == interface["index"] and _is_of_host(address)
        for address in host.dump(rtnetlink.list_addresses())
    ):
        network_link.write_sysctl(name, _INTERFACE_SYSCTL)
    elif bridge.vlan is None:
        raise OSError(
            errno.EADDRINUSE,
            # sysctl(8) separates the names by dots, so a dot in a name becomes a slash.
            "the interface has addresses of the host, which a bridge would disconnect; if a router "
            f"assigned them, set net.ipv6.conf.{name.replace('.', '/')}.accept_ra to 0 and delete "
            "them",
            name,
        )


def _is_of_host(address: Any) -> bool:
    """Return True unless it is an IPv6 link-local address.

    The kernel gives every interface that is up a link-local address. An address that came by a
    router advertisement counts as the host's, because the host may use it.
    """
    return bool(address["family"] == socket.AF_INET or address["scope"] != _SCOPE_LINK)


def _ensure_vlan(
    host: Netlink, interface: Any, vlan: int, name: str, found: Mapping[str, Any]
) -> Any:
    link = found.get(name)
    if link is None:
        link = _create(host, name, rtnetlink.add_vlan(name, interface["index"], vlan))
    elif (
        network_link.kind_of(link) != "vlan"
        or link.get_attr("IFLA_LINK") != interface["index"]
        or link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", "IFLA_VLAN_ID") != vlan
    ):
        raise OSError(
            errno.EEXIST, "a device that is not this VLAN's sub-interface bears the name", name
        )
    if not network_link.is_up(link):
        host.ask(rtnetlink.set_link(link["index"], up=True))
    return link


def _create(host: Netlink, name: str, request: Any) -> Any:
    """Create a device without IPv6, so that the host sends nothing into a tenant's network."""
    host.ask(request)
    network_link.write_sysctl(name, _CREATED_SYSCTL)
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
