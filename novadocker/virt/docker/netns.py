# SPDX-License-Identifier: Apache-2.0
"""The network namespace of an instance, and the record by which its container joins it.

The entry points of the privileged process: each checks its arguments, trusts nobody, and can be
repeated. The namespace belongs to the instance, not to a process, so that it outlives any start
and stop of the container.
"""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any

from oslo_concurrency import lockutils

from novadocker import privsep
from novadocker.virt.docker import kernel, records, wiring
from novadocker.virt.docker.model import IdMaps, Login
from novadocker.virt.docker.nics import Bridge, Nic, Route

NAMESPACES = "/run/netns"
# the runtime shim has the same path
USER_NAMESPACES = "/run/novadocker/users"

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
_HOST_DEVICE = re.compile(r"(tap|nic)[0-9a-f][0-9a-f-]{0,11}")
_GUEST_DEVICE = re.compile(r"eth[0-9]{1,3}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
# an IPv4 datagram must fit | veth knows no more
_MTU = range(68, 65536)
# no device of the host's own is ever taken for a bridge
_BRIDGE = re.compile(r"(brq|qbr)[0-9a-f][0-9a-f-]{0,11}")
# linux/if.h, net/core/dev.c: dev_valid_name
_INTERFACE = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]{1,15}")
# IEEE 802.1Q
_VLAN = range(1, 4095)


def namespace_path(instance_uuid: str) -> str:
    """Return the path of an instance's network namespace.

    :raises ValueError: that is no UUID
    """
    return f"{NAMESPACES}/nova-{_checked(_UUID, instance_uuid)}"


def namespace_exists(instance_uuid: str) -> bool:
    """Say whether an instance has its network namespace; needs no privilege."""
    return kernel.is_namespace(namespace_path(instance_uuid))


@privsep.network_pctxt.entrypoint
def create_namespace(instance_uuid: str) -> None:
    """Make an instance's network namespace with its loopback up; one that exists stays."""
    _wire(instance_uuid, ())


@privsep.network_pctxt.entrypoint
def create_owned_namespace(
    instance_uuid: str, users: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]
) -> None:
    """Make an instance's network namespace belong to a user namespace; one that exists stays.

    :param users: ranges of ids, as in ``model.IdMaps``
    :param groups: the same for groups
    :raises ValueError: an argument is not well-formed
    """
    ids = IdMaps(users=_parse_ranges(users), groups=_parse_ranges(groups))
    path = namespace_path(instance_uuid)
    with _locked(instance_uuid):
        kernel.run_in_thread(wiring.make_owned, path, _user_path(instance_uuid), ids)


@privsep.network_pctxt.entrypoint
def wire_nics(instance_uuid: str, nics: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Make every NIC of an instance what it must be, and its namespace if there is none.

    What is right already is left alone: a running instance loses no packet.

    :param nics: each ``nics.Nic`` as a dictionary
    :returns: the ports whose devices are new
    :raises ValueError: an argument is not well-formed
    :raises wiring.WiringFailed: a NIC is not what it must be in the end
    """
    return _wire(instance_uuid, [_parse_nic(nic) for nic in nics])


@privsep.network_pctxt.entrypoint
def silence_nics(instance_uuid: str, host_devices: Sequence[str]) -> None:
    """Take the host ends of NICs down until they are wired again; absent is fine."""
    names = [_checked(_HOST_DEVICE, name) for name in host_devices]
    with _locked(instance_uuid):
        kernel.run_in_thread(wiring.silence, names)


@privsep.network_pctxt.entrypoint
def announce_nics(instance_uuid: str, guest_devices: Sequence[str]) -> None:
    """Send what tells the neighbours of an instance its addresses' MACs; absent is fine."""
    path = namespace_path(instance_uuid)
    names = [_checked(_GUEST_DEVICE, name) for name in guest_devices]
    kernel.run_in_thread(wiring.announce, path, names)


@privsep.network_pctxt.entrypoint
def unwire_nic(
    instance_uuid: str, host_device: str, bridge: Mapping[str, Any] | None = None
) -> None:
    """Delete the veth pair of a NIC, and the bridge it was the last in; absent is fine.

    :param bridge: a ``nics.Bridge`` as a dictionary
    """
    with _locked(instance_uuid):
        kernel.run_in_thread(
            wiring.unwire, _checked(_HOST_DEVICE, host_device), _parse_bridge(bridge)
        )


@privsep.network_pctxt.entrypoint
def delete_namespace(instance_uuid: str) -> None:
    """Remove an instance's network namespace and the records that name it; absent is fine.

    The veth pairs in it go with it.
    """
    path = namespace_path(instance_uuid)
    with _locked(instance_uuid):
        kernel.remove_name(path)
        kernel.remove_name(_user_path(instance_uuid))
        for container_id in records.containers_of(path):
            records.remove(container_id)


@privsep.network_pctxt.entrypoint
def bind_container(
    container_id: str,
    instance_uuid: str,
    etc_files: Mapping[str, bytes] | None = None,
    login: Mapping[str, Any] | None = None,
) -> None:
    """Record, for the runtime shim, which instance's namespace a container joins.

    The record appears as a whole or not at all. Files and login are for the next start, and only
    for that.

    :param etc_files: contents for the container's /etc, see ``records.ETC_FILES``
    :param login: a ``model.Login`` as a dictionary
    :raises ValueError: an argument is not well-formed
    """
    records.write(
        _checked(_CONTAINER_ID, container_id),
        namespace_path(instance_uuid),
        etc_files or {},
        None if login is None else Login(**login),
    )


@privsep.network_pctxt.entrypoint
def release_container(container_id: str) -> None:
    """Remove the record of a container and what goes with it; absent is fine."""
    records.remove(_checked(_CONTAINER_ID, container_id))


def _wire(instance_uuid: str, nics: Sequence[Nic]) -> tuple[str, ...]:
    path = namespace_path(instance_uuid)
    with _locked(instance_uuid):
        return kernel.run_in_thread(wiring.wire, path, nics)


def _locked(instance_uuid: str) -> Any:
    """Keep calls for one instance apart; those for others go on."""
    return lockutils.lock(f"novadocker-netns-{_checked(_UUID, instance_uuid)}")


def _user_path(instance_uuid: str) -> str:
    return f"{USER_NAMESPACES}/nova-{_checked(_UUID, instance_uuid)}"


def _parse_ranges(ranges: Sequence[Sequence[int]]) -> tuple[tuple[int, int, int], ...]:
    """Return ranges of ids; none holds the host's root, which no container may be."""
    found = []
    for inside, outside, count in ranges:
        numbers = (inside, outside, count)
        if any(type(number) is not int or not 0 <= number < 1 << 32 for number in numbers):
            raise ValueError(f"{numbers} is no range of ids")
        if outside == 0 or count == 0:
            raise ValueError(f"{numbers} is not for containers")
        found.append(numbers)
    return tuple(found)


def _parse_nic(nic: Mapping[str, Any]) -> Nic:
    mtu = nic["mtu"]
    if mtu is not None and (type(mtu) is not int or mtu not in _MTU):
        raise ValueError(f"{mtu!r} is no MTU")
    return Nic(
        port_id=_checked(_UUID, nic["port_id"]),
        host_device=_checked(_HOST_DEVICE, nic["host_device"]),
        guest_device=_checked(_GUEST_DEVICE, nic["guest_device"]),
        mac=_checked(_MAC, nic["mac"]),
        mtu=mtu,
        addresses=tuple(str(ipaddress.ip_interface(address)) for address in nic["addresses"]),
        routes=tuple(_parse_route(route) for route in nic["routes"]),
        software_checksums=nic["software_checksums"] is True,
        bridge=_parse_bridge(nic["bridge"]),
    )


def _parse_bridge(bridge: Mapping[str, Any] | None) -> Bridge | None:
    if bridge is None:
        return None
    interface, vlan = bridge["interface"], bridge["vlan"]
    if vlan is not None and (type(vlan) is not int or vlan not in _VLAN):
        raise ValueError(f"{vlan!r} is no VLAN")
    return Bridge(
        name=_checked(_BRIDGE, bridge["name"]),
        interface=None if interface is None else _checked(_INTERFACE, interface),
        vlan=vlan,
    )


def _parse_route(route: Mapping[str, Any]) -> Route:
    gateway = route["gateway"]
    return Route(
        destination=str(ipaddress.ip_network(route["destination"])),
        gateway=None if gateway is None else str(ipaddress.ip_address(gateway)),
    )


def _checked(pattern: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{value!r} is not {pattern.pattern}")
    return value
