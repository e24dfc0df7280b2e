# SPDX-License-Identifier: Apache-2.0
"""The network rates of each server's ports, which the driver leaves for the exporter.

The kernel keeps half of them in the server's own network namespace, which root alone can enter.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_FOLDER = "rates"
# the name of the host end was not there once
_LINE = re.compile(r"(eth[0-9]{1,3}) ([0-9]{1,15}|-) ([0-9]{1,15}|-)(?: ([^ /]{1,15}))?")


@dataclass(frozen=True)
class PortRate:
    """What may go through a port in the long run, in bytes per second; None without a limit."""

    received: int | None
    sent: int | None


@dataclass(frozen=True)
class Port:
    """A port of a server.

    :ivar rate: that the driver set
    :ivar host_device: the end that the switch has; empty if that is not known
    """

    rate: PortRate
    host_device: str


def tell(
    state_path: Path, instance_uuid: str, devices: Iterable[tuple[str, str]], rate: PortRate
) -> None:
    """Leave the rate that all ports of a server have; a disk that takes nothing costs that alone.

    :param state_path: nova-compute's
    :param devices: the host end and the server's end of each port
    """
    words = ["-" if value is None else str(value) for value in (rate.received, rate.sent)]
    text = "".join(f"{guest} {words[0]} {words[1]} {host}\n" for host, guest in devices)
    path = _path(state_path, instance_uuid)
    with suppress(OSError):
        path.parent.mkdir(0o755, exist_ok=True)
        # nobody is to read half of it
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(text)
        os.replace(temporary, path)


def forget(state_path: Path, instance_uuid: str) -> None:
    """Remove what was left of a server; absent is fine."""
    with suppress(OSError):
        _path(state_path, instance_uuid).unlink(missing_ok=True)


def path_of(state_path: str, instance_uuid: str) -> str:
    """Return the file of a server."""
    return f"{state_path}/{_FOLDER}/{instance_uuid}"


def parse(text: str | None) -> dict[str, Port]:
    """Return the ports by the server's device; None is a file that is not there."""
    found = (_LINE.fullmatch(line) for line in (text or "").splitlines())
    return {
        match[1]: Port(PortRate(_rate(match[2]), _rate(match[3])), match[4] or "")
        for match in found
        if match
    }


def lower(first: PortRate, second: PortRate) -> PortRate:
    """Pure: return what may go through a port that has two limits in a row."""
    return PortRate(_lower(first.received, second.received), _lower(first.sent, second.sent))


def _lower(first: int | None, second: int | None) -> int | None:
    return min((value for value in (first, second) if value is not None), default=None)


def _rate(word: str) -> int | None:
    return None if word == "-" else int(word)


def _path(state_path: Path, instance_uuid: str) -> Path:
    return Path(path_of(str(state_path), instance_uuid))
