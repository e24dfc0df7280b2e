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
_LINE = re.compile(r"(eth[0-9]{1,3}) ([0-9]{1,15}|-) ([0-9]{1,15}|-)")


@dataclass(frozen=True)
class PortRate:
    """What may go through a port in the long run, in bytes per second; None without a limit."""

    received: int | None
    sent: int | None


def tell(state_path: Path, instance_uuid: str, ports: Iterable[str], rate: PortRate) -> None:
    """Leave the rate that all ports of a server have; a disk that takes nothing costs that alone.

    :param state_path: nova-compute's
    :param ports: their devices, as the server sees them
    """
    words = ["-" if value is None else str(value) for value in (rate.received, rate.sent)]
    text = "".join(f"{port} {words[0]} {words[1]}\n" for port in ports)
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


def parse(text: str | None) -> dict[str, PortRate]:
    """Return the rates by device; None is a file that is not there."""
    found = (_LINE.fullmatch(line) for line in (text or "").splitlines())
    return {
        match[1]: PortRate(*(None if word == "-" else int(word) for word in match.groups()[1:]))
        for match in found
        if match
    }


def _path(state_path: Path, instance_uuid: str) -> Path:
    return Path(path_of(str(state_path), instance_uuid))
