# SPDX-License-Identifier: Apache-2.0
"""The files with the network rates of each instance's ports: the driver writes, the exporter reads.

The exporter cannot read the rates from the kernel, because half of them are set in the instance's
network namespace, which only root can enter.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from novadocker import naming
from novadocker.linux import files

_FOLDER = "rates"
# The last field, the name of the host end, is optional: files of older versions lack it.
_LINE = re.compile(
    rf"({naming.GUEST_DEVICE.pattern}) ([0-9]{{1,15}}|-) ([0-9]{{1,15}}|-)(?: ([^ /]{{1,15}}))?"
)


@dataclass(frozen=True)
class PortRate:
    """The sustained rates of a port in bytes per second; None for unlimited."""

    received: int | None
    sent: int | None


@dataclass(frozen=True)
class Port:
    """A port of an instance.

    :ivar rate: the rate that the driver set
    :ivar host_device: name of the host end, which the switch has; empty if unknown
    """

    rate: PortRate
    host_device: str


def tell(
    state_path: Path, instance_uuid: str, devices: Iterable[tuple[str, str]], rate: PortRate
) -> None:
    """Write the rate of all ports of an instance.

    Errors are ignored, because a full disk must not fail the operation that set the rates.

    :param state_path: of nova-compute
    :param devices: names of the host end and of the instance's end of each port
    """
    words = ["-" if value is None else str(value) for value in (rate.received, rate.sent)]
    text = "".join(f"{guest} {words[0]} {words[1]} {host}\n" for host, guest in devices)
    path = _path(state_path, instance_uuid)
    with suppress(OSError):
        path.parent.mkdir(0o755, exist_ok=True)
        files.replace_file(path, text.encode(), mode=None, sync=False)


def forget(state_path: Path, instance_uuid: str) -> None:
    """Delete the file of an instance. Does nothing if the file does not exist."""
    with suppress(OSError):
        _path(state_path, instance_uuid).unlink(missing_ok=True)


def path_of(state_path: str, instance_uuid: str) -> str:
    """Return the path of an instance's file."""
    return f"{state_path}/{_FOLDER}/{instance_uuid}"


def parse(text: str | None) -> dict[str, Port]:
    """Return the ports by the name of the instance's device.

    :param text: content of the file; None if it does not exist
    """
    found = (_LINE.fullmatch(line) for line in (text or "").split("\n"))
    return {
        match[1]: Port(PortRate(_rate(match[2]), _rate(match[3])), match[4] or "")
        for match in found
        if match
    }


def lower(first: PortRate, second: PortRate) -> PortRate:
    """Return the rate of a port that passes two limits in a row. Pure."""
    return PortRate(_lower(first.received, second.received), _lower(first.sent, second.sent))


def _lower(first: int | None, second: int | None) -> int | None:
    return min((value for value in (first, second) if value is not None), default=None)


def _rate(word: str) -> int | None:
    return None if word == "-" else int(word)


def _path(state_path: Path, instance_uuid: str) -> Path:
    return Path(path_of(str(state_path), instance_uuid))
