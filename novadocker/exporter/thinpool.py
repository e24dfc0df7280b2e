# SPDX-License-Identifier: Apache-2.0
"""How full the thin pool of the engine's storage driver ``devicemapper`` is.

The kernel tells that to root alone, by an ioctl of device mapper; the engine tells whoever may use
its socket. No other storage driver has a pool, so no other engine is asked.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from novadocker.exporter import host

# units.HumanSize of docker/go-units: four digits, powers of 1000
_SIZE = re.compile(r"([0-9.]+(?:e[+-]?[0-9]+)?) ?([kMGTPEZY]?)B")
_POWERS = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


@dataclass(frozen=True)
class Space:
    """What there is of a pool, in bytes, to the four digits that the engine tells."""

    size_bytes: int
    used_bytes: int


def read_pool(data_root: Path, engine: str) -> dict[str, Space]:
    """Return a pool's ``data`` and ``metadata``; what the engine does not tell is left out.

    :param engine: its socket
    """
    if not (data_root / "devicemapper").is_dir():
        return {}
    answer = host.ask_engine(engine, "/info")
    return {} if answer is None else parse_pool(answer)


def parse_pool(answer: bytes) -> dict[str, Space]:
    """Pure: return a pool's ``data`` and ``metadata`` from an engine's ``/info``."""
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
