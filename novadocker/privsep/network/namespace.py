# SPDX-License-Identifier: Apache-2.0
"""The network namespace of an instance: entry points of the privileged process.

Each entry point checks its arguments and is idempotent. The namespace is mounted and needs no
process, so that it survives when the container stops and starts.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from oslo_concurrency import lockutils

from novadocker import naming, privsep
from novadocker.linux import namespaces
from novadocker.linux.namespaces import IdMaps
from novadocker.privsep import arguments
from novadocker.privsep.network import wiring
from novadocker.privsep.network.types import Bridge, Nic, Route
from novadocker.runtime import record

NAMESPACES = record.NETWORK_NAMESPACES
USER_NAMESPACES = record.USER_NAMESPACES

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
# from the smallest that IPv4 allows (RFC 791) to the largest of a veth device
_MTU = range(68, 65536)
# linux/if.h, net/core/dev.c: dev_valid_name
_INTERFACE = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]{1,15}")
# IEEE 802.1Q
_VLAN = range(1, 4095)
# user_namespaces(7)
_MOST_RANGES = 340

_NIC_FIELDS = [field.name for field in dataclasses.fields(Nic)]
_BRIDGE_FIELDS = [field.name for field in dataclasses.fields(Bridge)]
_ROUTE_FIELDS = [field.name for field in dataclasses.fields(Route)]


def namespace_path(instance_uuid: str) -> str:
    """Return the path of an instance's network namespace.

    :raises ValueError: the argument is not a UUID
    """
    return f"{NAMESPACES}/{naming.namespace_name(arguments.instance_uuid(instance_uuid))}"


@privsep.network_pctxt.entrypoint
def create_owned_namespace(
    instance_uuid: str, users: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]
) -> None:
    """Create an instance's network namespace, owned by a new user namespace.

    Does nothing if the network namespace exists.

    :param users: ranges of user ids, as in ``namespaces.IdMaps``
    :param groups: ranges of group ids
    :raises ValueError: an argument is not well-formed
    """
    ids = IdMaps(users=_parse_ranges(users), groups=_parse_ranges(groups))
    path = namespace_path(instance_uuid)
    with locked(instance_uuid):
        namespaces.run_in_thread(wiring.create_owned, path, user_namespace_path(instance_uuid), ids)


@privsep.network_pctxt.entrypoint
def wire_nics(
    instance_uuid: str, nics: Sequence[Mapping[str, Any]], keep_own: bool = False
) -> tuple[str, ...]:
    """Create and configure the devices of an instance, and its namespace if there is none.

    Changes only what differs, so that a running instance loses no packet.

    :param nics: each ``types.Nic`` as a dictionary
    :param keep_own: True if devices, addresses and routes stay that a tenant added
        (CAP_NET_ADMIN)
    :returns: the ports whose devices are new
    :raises ValueError: an argument is not well-formed
    :raises wiring.WiringFailed: the kernel refuses a NIC or does not keep its settings
    """
    path, user_path = namespace_path(instance_uuid), user_namespace_path(instance_uuid)
    wanted = [_parse_nic(nic) for nic in arguments.items(nics)]
    keep = arguments.flag(keep_own)
    with locked(instance_uuid):
        return namespaces.run_in_thread(wiring.wire, path, user_path, wanted, keep)


@privsep.network_pctxt.entrypoint
def silence_nics(instance_uuid: str, host_devices: Sequence[str]) -> None:
    """Set host devices down until they are wired again. Ignores devices that do not exist."""
    names = [arguments.host_device(name) for name in arguments.items(host_devices)]
    with locked(instance_uuid):
        namespaces.run_in_thread(wiring.silence, names)


@privsep.network_pctxt.entrypoint
def announce_nics(instance_uuid: str, guest_devices: Sequence[str]) -> None:
    """Announce the addresses of guest devices and their MAC addresses to the neighbours.

    Ignores devices that do not exist.
    """
    path = namespace_path(instance_uuid)
    names = [arguments.guest_device(name) for name in arguments.items(guest_devices)]
    namespaces.run_in_thread(wiring.announce, path, names)


@privsep.network_pctxt.entrypoint
def unwire_nic(
    instance_uuid: str, host_device: str, bridge: Mapping[str, Any] | None = None
) -> None:
    """Delete the veth pair of a NIC, and its bridge if no other port uses it. Idempotent.

    :param bridge: a ``types.Bridge`` as a dictionary
    """
    device, wanted = arguments.host_device(host_device), _parse_bridge(bridge)
    with locked(instance_uuid):
        namespaces.run_in_thread(wiring.unwire, device, wanted)


def locked(instance_uuid: str) -> Any:
    """Return a lock for calls that concern one instance."""
    return lockutils.lock(f"novadocker-netns-{arguments.instance_uuid(instance_uuid)}")


def user_namespace_path(instance_uuid: str) -> str:
    """Return the path of the user namespace that owns an instance's network namespace."""
    return f"{USER_NAMESPACES}/nova-{arguments.instance_uuid(instance_uuid)}"


def _parse_ranges(ranges: object) -> tuple[tuple[int, int, int], ...]:
    """Return ranges of ids, checked: no range contains root of the host."""
    found = []
    for numbers in arguments.items(ranges):
        inside, outside, count = map(arguments.id_number, arguments.items(numbers))
        if outside == 0 or count == 0 or max(inside, outside) + count > arguments.IDS.stop:
            raise ValueError(f"{numbers} is not a range of ids for containers")
        found.append((inside, outside, count))
    if not 0 < len(found) <= _MOST_RANGES:
        raise ValueError(f"{len(found)} ranges of ids are not between 1 and {_MOST_RANGES}")
    return tuple(found)


def _parse_nic(value: object) -> Nic:
    nic = arguments.fields(_NIC_FIELDS, value)
    return Nic(
        port_id=arguments.instance_uuid(nic["port_id"]),
        host_device=arguments.host_device(nic["host_device"]),
        guest_device=arguments.guest_device(nic["guest_device"]),
        mac=arguments.text(_MAC, nic["mac"]),
        mtu=None if nic["mtu"] is None else arguments.number(_MTU, nic["mtu"]),
        addresses=tuple(map(arguments.interface_address, arguments.items(nic["addresses"]))),
        routes=tuple(map(_parse_route, arguments.items(nic["routes"]))),
        software_checksums=arguments.flag(nic["software_checksums"]),
        bridge=_parse_bridge(nic["bridge"]),
        unknown_destinations=tuple(
            map(arguments.network, arguments.items(nic["unknown_destinations"]))
        ),
    )


def _parse_bridge(value: object) -> Bridge | None:
    if value is None:
        return None
    bridge = arguments.fields(_BRIDGE_FIELDS, value)
    interface, vlan = bridge["interface"], bridge["vlan"]
    return Bridge(
        # Because only these names are allowed, no other device of the host is used as a bridge.
        name=arguments.text(naming.BRIDGE, bridge["name"]),
        interface=None if interface is None else arguments.text(_INTERFACE, interface),
        vlan=None if vlan is None else arguments.number(_VLAN, vlan),
    )


def _parse_route(value: object) -> Route:
    route = arguments.fields(_ROUTE_FIELDS, value)
    gateway = route["gateway"]
    return Route(
        destination=arguments.network(route["destination"]),
        gateway=None if gateway is None else arguments.address(gateway),
    )
