# SPDX-License-Identifier: Apache-2.0
"""How often the kernel killed a process of a server for want of memory; needs no privilege."""

import re
from pathlib import Path

FILES = {1: ("memory", "memory.oom_control"), 2: ("memory", "memory.events")}
"""Controller and file with the count, by version of control groups."""


def read_kills(pid: int, root: Path = Path("/")) -> int:
    """Return the count since the server's start, 0 when it is gone.

    :param pid: the server's first process
    :param root: where /proc and /sys are
    """
    try:
        lines = (root / f"proc/{pid}/cgroup").read_text().splitlines()
        found = re.search(r"^oom_kill ([0-9]+)$", _counters(root, lines).read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) if found else 0


def _counters(root: Path, lines: list[str]) -> Path:
    """Return the file with the counters (v2 memory.events, v1 memory.oom_control)."""
    paths = {names: path.lstrip("/") for _, names, path in (line.split(":", 2) for line in lines)}
    for names, path in paths.items():
        if "memory" in names.split(","):
            return root / "sys/fs/cgroup" / names / path / FILES[1][1]
    return root / "sys/fs/cgroup" / paths[""] / FILES[2][1]
