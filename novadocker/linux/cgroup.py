# SPDX-License-Identifier: Apache-2.0
"""How often the kernel killed a process of a server for want of memory; needs no privilege."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FILES = {1: ("memory", "memory.oom_control"), 2: ("memory", "memory.events")}
"""Controller and file with the count, by version of control groups."""


# field of DiskRates: the file of version 1, the word in io.max of version 2
THROTTLES = {
    "read_bytes": ("blkio.throttle.read_bps_device", "rbps"),
    "write_bytes": ("blkio.throttle.write_bps_device", "wbps"),
    "read_iops": ("blkio.throttle.read_iops_device", "riops"),
    "write_iops": ("blkio.throttle.write_iops_device", "wiops"),
}


@dataclass(frozen=True)
class DiskRates:
    """What a server may read from and write to its disk in a second at most; 0 is no limit."""

    read_bytes: int = 0
    write_bytes: int = 0
    read_iops: int = 0
    write_iops: int = 0


@dataclass(frozen=True)
class Groups:
    """The control groups of a container: the folder of each controller.

    :ivar version: 1 or 2; in version 2 all controllers have one folder
    """

    version: int
    folders: Mapping[str, Path]

    def read(self, controller: str, file: str) -> str | None:
        """Return what a file has, None where the kernel or the host's set-up lacks it."""
        try:
            return (self._folder(controller) / file).read_text().strip()
        except (KeyError, FileNotFoundError):
            return None

    def write(self, controller: str, file: str, content: str) -> None:
        """Write a file.

        :raises OSError: the kernel refuses
        """
        (self._folder(controller) / file).write_text(content)

    def read_parent(self, controller: str, file: str) -> str | None:
        """Return what a file of the group above has."""
        try:
            return (self._folder(controller).parent / file).read_text().strip()
        except (KeyError, FileNotFoundError):
            return None

    def _folder(self, controller: str) -> Path:
        return self.folders[controller if self.version == 1 else ""]


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


def groups(pid: int, container_id: str, root: Path = Path("/")) -> Groups:
    """Return the control groups of a container, whichever driver the engine made them by.

    A first process that manages groups itself, as systemd does, is in one below the container's.

    :param pid: of the container's first process
    :param root: where /proc and /sys are
    :raises ProcessLookupError: there is no such process, or it is not the container's
    """
    try:
        lines = (root / f"proc/{int(pid)}/cgroup").read_text().splitlines()
    except FileNotFoundError as error:
        raise ProcessLookupError(f"process {pid} is gone") from error
    folders = {}
    for _, names, path in (line.split(":", 2) for line in lines):
        head, found, tail = path.partition(container_id)
        if found:
            own = head + found + tail.partition("/")[0]
            for name in names.split(","):
                folders[name] = root / "sys/fs/cgroup" / names / own.lstrip("/")
    if "memory" in folders:
        return Groups(1, folders)
    if "" in folders:
        return Groups(2, folders)
    raise ProcessLookupError(f"process {pid} is not of container {container_id}")


def numbers(text: str) -> frozenset[int]:
    """Return the numbers of a list as the kernel writes it, such as ``0-2,5``."""
    ends = [part.partition("-") for part in text.split(",") if part]
    return frozenset(
        number for first, _, last in ends for number in range(int(first), int(last or first) + 1)
    )


def disk_of(path: str, sysfs: Path = Path("/sys")) -> str | None:
    """Return the number of the disk that a block device is (part of), as ``254:0``.

    The kernel limits rates on whole disks alone.

    :param path: of the device; None is the answer for what is no block device
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not os.major(found.st_rdev):
        return None
    number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    device = (sysfs / "dev/block" / number).resolve()
    if (device / "partition").exists():
        return (device.parent / "dev").read_text().strip()
    return number


def read_disk_rates(found: Groups, disk: str) -> DiskRates:
    """Return the rates at which a container may use a disk."""
    rates = {}
    for field, (file, word) in THROTTLES.items():
        if found.version == 1:
            text = found.read("blkio", file) or ""
            lines = [line.split() for line in text.splitlines()]
            values = [line[1] for line in lines if line[0] == disk]
        else:
            lines = [line.split() for line in (found.read("io", "io.max") or "").splitlines()]
            values = [
                value.partition("=")[2]
                for line in lines
                if line[0] == disk
                for value in line[1:]
                if value.startswith(f"{word}=")
            ]
        rates[field] = int(values[0]) if values and values[0] != "max" else 0
    return DiskRates(**rates)
