# SPDX-License-Identifier: Apache-2.0
"""The file with what the users of a host use of limits that the kernel has for each user.

The driver writes it and the exporter reads it, because only root can list the descriptors of all
processes.
"""

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from novadocker.linux import files

_FILE = "user-budgets"
_LINE = re.compile(r"([a-z_]{1,40}) ([0-9]{1,15})")
_LONGEST = 1 << 12
# The driver writes every five minutes while nova-compute runs.
_OLDEST_SECONDS = 900.0


def tell(state_path: Path, used: Mapping[str, int]) -> None:
    """Write the use of each budget by the user who uses most.

    :param state_path: of nova-compute
    :raises OSError: the file cannot be written
    """
    text = "".join(f"{name} {count}\n" for name, count in used.items())
    files.replace_file(state_path / _FILE, text.encode(), mode=None, sync=False)


def read(state_path: Path) -> dict[str, int]:
    """Return the use by name; nothing if there is no file, or if it is old."""
    path = state_path / _FILE
    with suppress(OSError):
        if time.time() - path.stat().st_mtime < _OLDEST_SECONDS:
            with path.open("rb") as file:
                return parse(file.read(_LONGEST).decode("ascii", "replace"))
    return {}


def parse(text: str) -> dict[str, int]:
    """Return the use by name; malformed lines are ignored."""
    return {
        found[1]: int(found[2]) for line in text.splitlines() if (found := _LINE.fullmatch(line))
    }
