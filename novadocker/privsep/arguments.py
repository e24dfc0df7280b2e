# SPDX-License-Identifier: Apache-2.0
"""Checks of the arguments of privileged functions; pure.

A privileged function does not trust its caller: it passes each argument to one of these functions
before any effect, and uses the value that the function returns. Each raises ValueError if the
value is malformed.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from novadocker import naming

# The pattern allows "..", which without_detours refuses.
_FOLDER = re.compile(r"/(?:[\w.@+-]+/)*[\w.@+-]+")
# PID_MAX_LIMIT in linux/threads.h
_PROCESSES = range(1, (1 << 22) + 1)
# fs.nr_open can't exceed this number.
_DESCRIPTORS = range(1 << 30)
IDS = range((1 << 32) - 1)
"""Ids of users and groups. The kernel uses the last number for no id, or for an unchanged one."""

_RATES = range((1 << 62) + 1)


def text(pattern: re.Pattern[str], value: object) -> str:
    """Return ``value`` if it is a str and the whole of it matches the pattern."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{value!r} does not match {pattern.pattern}")
    return value


def number(allowed: range, value: object) -> int:
    """Return ``value`` if it is an int (not a bool) within ``allowed``."""
    if type(value) is not int or value not in allowed:
        raise ValueError(f"{value!r} is not an int in {allowed}")
    return value


def id_number(value: object) -> int:
    """Return ``value`` if it is the id of a user or group."""
    return number(IDS, value)


def flag(value: object) -> bool:
    """Return ``value`` if it is a bool."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not a bool")
    return value


def data(most: int, value: object) -> bytes:
    """Return ``value`` if it is bytes of at most that length."""
    if not isinstance(value, bytes) or len(value) > most:
        raise ValueError(f"the value is not bytes of at most {most} bytes")
    return value


def items(value: object) -> Sequence[Any]:
    """Return ``value`` if it is a sequence, but not str or bytes."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise ValueError(f"{value!r} is not a sequence")
    return value


def mapping(value: object) -> Mapping[Any, Any]:
    """Return ``value`` if it is a mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is not a mapping")
    return value


def fields(names: Iterable[str], value: object) -> Mapping[str, Any]:
    """Return ``value`` if it is a mapping with exactly these keys, as of ``dataclasses.asdict``."""
    found = mapping(value)
    if set(found) != set(names):
        raise ValueError(f"{sorted(map(str, found))} are not the fields {sorted(names)}")
    return found


def one_of(allowed: Set[str], value: object) -> str:
    """Return ``value`` if it is one of the allowed texts."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{value!r} is not one of {sorted(allowed)}")
    return value


def instance_uuid(value: object) -> str:
    """Return the UUID of an instance in its canonical form."""
    return text(naming.UUID, value)


def container_id(value: object) -> str:
    """Return the full id of a container."""
    return text(naming.CONTAINER_ID, value)


def host_device(value: object) -> str:
    """Return the name of the host end of a veth pair."""
    return text(naming.HOST_DEVICE, value)


def guest_device(value: object) -> str:
    """Return the name of an instance's network device."""
    return text(naming.GUEST_DEVICE, value)


def process(value: object) -> int:
    """Return the id of a process."""
    return number(_PROCESSES, value)


def open_file(value: object) -> tuple[int, int]:
    """Return a process id and the number of a file descriptor of the process."""
    pid, descriptor = _pair(value)
    return process(pid), number(_DESCRIPTORS, descriptor)


def device_pair(value: object) -> tuple[str, str]:
    """Return the names of the host end and the guest end of a VIF."""
    host, guest = _pair(value)
    return host_device(host), guest_device(guest)


def folder(value: object) -> str:
    """Return the absolute path of a directory, which has no ``.`` or ``..`` in it."""
    return without_detours(text(_FOLDER, value))


def without_detours(path: str) -> str:
    """Return the path if none of its components is ``.`` or ``..``."""
    if any(component in (".", "..") for component in path.split("/")):
        raise ValueError(f"{path!r} has a component . or ..")
    return path


def address(value: object) -> str:
    """Return an IP address in its canonical form."""
    return str(ipaddress.ip_address(_internet(value)))


def interface_address(value: object) -> str:
    """Return an IP address with its prefix length, in its canonical form."""
    return str(ipaddress.ip_interface(_internet(value)))


def network(value: object) -> str:
    """Return an IP network in its canonical form."""
    return str(ipaddress.ip_network(_internet(value)))


def _internet(value: object) -> str:
    # ipaddress accepts any int as an address, and an interface name after "%".
    if not isinstance(value, str) or "%" in value:
        raise ValueError(f"{value!r} is not an address")
    return value


def _pair(value: object) -> tuple[Any, Any]:
    found = items(value)
    if len(found) != 2:
        raise ValueError(f"{value!r} is not a pair")
    return found[0], found[1]


def rates(names: Sequence[str], value: object) -> dict[str, int]:
    """Return the mapping of ``names`` to rates, each between 0 and 2**62."""
    found = fields(names, value)
    return {name: number(_RATES, rate) for name, rate in found.items()}
