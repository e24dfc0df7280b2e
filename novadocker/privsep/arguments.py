# SPDX-License-Identifier: Apache-2.0
"""Pure: what the arguments of privileged functions may be.

A privileged function trusts nobody: it hands each argument to one of these before it touches
anything, and passes on what they return. All raise ValueError for what is not well-formed.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from novadocker import naming

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
# ".." is refused apart
_FOLDER = re.compile(r"/(?:[\w.@+-]+/)*[\w.@+-]+")
# PID_MAX_LIMIT of linux/threads.h
_PROCESSES = range(1, (1 << 22) + 1)
# fs.nr_open can't be more
_DESCRIPTORS = range(1 << 30)


_RATES = range((1 << 62) + 1)


def text(pattern: re.Pattern[str], value: object) -> str:
    """Return a text that matches a pattern from its begin to its end."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{value!r} is not {pattern.pattern}")
    return value


def number(allowed: range, value: object) -> int:
    """Return a number of a range; a truth value is none."""
    if type(value) is not int or value not in allowed:
        raise ValueError(f"{value!r} is not one of {allowed}")
    return value


def flag(value: object) -> bool:
    """Return a truth value."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    return value


def data(most: int, value: object) -> bytes:
    """Return a content of at most so many bytes."""
    if not isinstance(value, bytes) or len(value) > most:
        raise ValueError(f"that is no content of {most} bytes at most")
    return value


def items(value: object) -> Sequence[Any]:
    """Return a sequence, which no text is."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise ValueError(f"{value!r} is no sequence")
    return value


def mapping(value: object) -> Mapping[Any, Any]:
    """Return a mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is no mapping")
    return value


def fields(names: Iterable[str], value: object) -> Mapping[str, Any]:
    """Return a mapping that has these keys and no others, as ``dataclasses.asdict`` makes them."""
    found = mapping(value)
    if set(found) != set(names):
        raise ValueError(f"{sorted(map(str, found))} are not the fields {sorted(names)}")
    return found


def one_of(allowed: Set[str], value: object) -> str:
    """Return one of some words."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{value!r} is not one of {sorted(allowed)}")
    return value


def instance_uuid(value: object) -> str:
    """Return the UUID of an instance, in its usual form."""
    return text(_UUID, value)


def container_id(value: object) -> str:
    """Return the whole id of a container."""
    return text(_CONTAINER_ID, value)


def host_device(value: object) -> str:
    """Return the name of the host's end of a veth pair."""
    return text(naming.HOST_DEVICE, value)


def guest_device(value: object) -> str:
    """Return the name of an instance's network device."""
    return text(naming.GUEST_DEVICE, value)


def process(value: object) -> int:
    """Return the id of a process."""
    return number(_PROCESSES, value)


def open_file(value: object) -> str:
    """Return the path of a file that a process has open, of the process and its descriptor."""
    pid, descriptor = _pair(value)
    return f"/proc/{process(pid)}/fd/{number(_DESCRIPTORS, descriptor)}"


def device_pair(value: object) -> tuple[str, str]:
    """Return the host end and the guest end of a VIF."""
    host, guest = _pair(value)
    return host_device(host), guest_device(guest)


def folder(value: object) -> str:
    """Return the absolute path of a folder, as it is written without detours."""
    return without_detours(text(_FOLDER, value))


def without_detours(path: str) -> str:
    """Return a path that leads nowhere but downwards."""
    if any(word in (".", "..") for word in path.split("/")):
        raise ValueError(f"{path!r} has detours")
    return path


def address(value: object) -> str:
    """Return an IP address, in its usual form."""
    return str(ipaddress.ip_address(_internet(value)))


def interface_address(value: object) -> str:
    """Return an IP address with the length of its network's prefix, in its usual form."""
    return str(ipaddress.ip_interface(_internet(value)))


def network(value: object) -> str:
    """Return an IP network, in its usual form."""
    return str(ipaddress.ip_network(_internet(value)))


def _internet(value: object) -> str:
    # ipaddress makes an address of any number, and takes the name of an interface after it
    if not isinstance(value, str) or "%" in value:
        raise ValueError(f"{value!r} is no address")
    return value


def _pair(value: object) -> tuple[Any, Any]:
    found = items(value)
    if len(found) != 2:
        raise ValueError(f"{value!r} is no pair")
    return found[0], found[1]


def rates(names: Sequence[str], value: object) -> dict[str, int]:
    """Return a rate for each of ``names``, between 0 and 2**62."""
    found = fields(names, value)
    return {name: number(_RATES, rate) for name, rate in found.items()}
