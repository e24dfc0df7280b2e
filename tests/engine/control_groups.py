# SPDX-License-Identifier: Apache-2.0
"""The kernel's limits of a process, in both versions of control groups."""

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
UNIFIED = (ROOT / "cgroup.controllers").exists()
"""True if the machine's controllers are version 2's."""


def folder(pid: int, controller: str) -> Path:
    """Return the directory of the control group that limits a process."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if UNIFIED and not names:
            return ROOT / path.lstrip("/")
        if controller in names.split(","):
            return ROOT / names / path.lstrip("/")
    raise LookupError(controller)


def value(pid: int, older: str, newer: str) -> str:
    """Return the content of a control file.

    :param older: its name in version 1, which begins with the controller's name
    :param newer: its name in version 2
    """
    name = newer if UNIFIED else older
    return (folder(pid, older.partition(".")[0]) / name).read_text().strip()
