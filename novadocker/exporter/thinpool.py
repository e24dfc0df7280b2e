# SPDX-License-Identifier: Apache-2.0
"""Reading the use of the thin pool of the engine's storage driver ``devicemapper``.

The engine is asked, because the kernel answers the ioctl of device mapper only for root. With
another storage driver the engine is not asked, because only ``devicemapper`` has a pool.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from novadocker.exporter import host

# docker/go-units' units.HumanSize writes four digits and a power of 1000.
_SIZE = re.compile(r"([0-9.]+(?:e[+-]?[0-9]+)?) ?([kMGTPEZY]?)B")
_POWERS = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


@dataclass(frozen=True)
class Space:
    """Size and use of a pool in bytes, with the precision of the engine: four digits."""

    size_bytes: int
    used_bytes: int


def read_pool(data_root: Path, engine: str) -> dict[str, Space]:
    """Return the space of a pool's ``data`` and ``metadata``, without those that are unknown.

    :param engine: socket of the engine
    """
    if not (data_root / "devicemapper").is_dir():
        return {}
    answer = host.ask_engine(engine, "/info")
    return {} if answer is None else parse_pool(answer)


def parse_pool(answer: bytes) -> dict[str, Space]:
    """Return the space of a pool's ``data`` and ``metadata`` from an engine's ``/info``. Pure."""
    try:
        status = dict(json.loads(answer)["DriverStatus"])
    except (ValueError, KeyError, TypeError):
        return {}
    found = {}
    for kind in ("data", "metadata"):
        size = _bytes(status.get(f"{kind.capitalize()} Space Total"))
        used = _bytes(status.get(f"{kind.capitalize()} Space Used"))
        if size is not None and used is not None:
            found[kind] = Space(size, used)
    return found


def _bytes(text: Any) -> int | None:
    match = _SIZE.fullmatch(str(text))
    return round(float(match[1]) * 1000 ** _POWERS.index(match[2])) if match else None
