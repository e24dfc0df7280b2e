# SPDX-License-Identifier: Apache-2.0
"""The records of the addresses and routes that the driver gave to the devices of instances.

A tenant with CAP_NET_ADMIN adds addresses and routes, as keepalived does. By the record the driver
tells them from those that Neutron took away. The records are below /run, because the network
namespaces also exist until the host restarts.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from novadocker.linux.files import replace_file
from novadocker.privsep.network.types import Nic, Route

FOLDER = Path("/run/novadocker/given")


@dataclass(frozen=True)
class Given:
    """The addresses and routes of one guest device, in the form of ``types.Nic``."""

    addresses: frozenset[str] = frozenset()
    routes: frozenset[Route] = frozenset()


Record = Mapping[str, Given]
"""What each guest device was given, by its name."""


def of_nics(nics: Iterable[Nic], before: Record) -> dict[str, Given]:
    """Return the record of NICs, with their earlier routes to unknown destinations.

    :param before: the earlier record
    """
    nothing = Given()
    found = {}
    for nic in nics:
        stay = frozenset(
            route
            for route in before.get(nic.guest_device, nothing).routes
            if route.destination in nic.unknown_destinations
        )
        found[nic.guest_device] = Given(frozenset(nic.addresses), stay.union(nic.routes))
    return found


def merged(first: Record, second: Record) -> dict[str, Given]:
    """Return a record with all that two records have."""
    nothing = Given()
    found = {}
    for name in first.keys() | second.keys():
        one, other = first.get(name, nothing), second.get(name, nothing)
        found[name] = Given(one.addresses | other.addresses, one.routes | other.routes)
    return found


def read(namespace: str) -> dict[str, Given] | None:
    """Return the record of a network namespace; None without one.

    :param namespace: name of the namespace
    """
    try:
        content = json.loads((FOLDER / namespace).read_bytes())
    except FileNotFoundError:
        return None
    return {
        name: Given(
            frozenset(found["addresses"]),
            frozenset(Route(destination, gateway) for destination, gateway in found["routes"]),
        )
        for name, found in content.items()
    }


def write(namespace: str, record: Record) -> None:
    """Replace the record of a network namespace."""
    content = {
        name: {
            "addresses": sorted(found.addresses),
            "routes": sorted(
                ([route.destination, route.gateway] for route in found.routes), key=str
            ),
        }
        for name, found in sorted(record.items())
    }
    FOLDER.mkdir(0o755, parents=True, exist_ok=True)
    replace_file(FOLDER / namespace, json.dumps(content).encode(), mode=0o644, sync=False)


def forget(namespace: str) -> None:
    """Delete the record of a network namespace. Does nothing if it does not exist."""
    (FOLDER / namespace).unlink(missing_ok=True)
