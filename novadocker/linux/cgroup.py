# SPDX-License-Identifier: Apache-2.0
"""The control groups of containers on cgroup v1 and v2; reading them needs no privilege.

A tenant can create control groups below the container's own and choose their names. So the first
name in a path that is a container's counts, and no name is ever compared in part. The kernel writes
one group a line in /proc/PID/cgroup and refuses a line feed in a name (kernel/cgroup/cgroup.c,
cgroup_mkdir), but no other byte: a line ends at a line feed alone, and text is decoded by
``os.fsdecode``.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from novadocker import naming

OOM_FILES = {1: ("memory", "memory.oom_control"), 2: ("memory", "memory.events")}
"""Controller and name of the file that counts out-of-memory kills, by cgroup version."""

THROTTLES = {
    "read_bytes": ("blkio.throttle.read_bps_device", "rbps"),
    "write_bytes": ("blkio.throttle.write_bps_device", "wbps"),
    "read_iops": ("blkio.throttle.read_iops_device", "riops"),
    "write_iops": ("blkio.throttle.write_iops_device", "wiops"),
}
"""By field of ``DiskRates``: the file of version 1, and the key in ``io.max`` of version 2."""

# The engine's cgroup drivers cgroupfs and systemd name a group "<id>" and "docker-<id>.scope".
_CONTAINER_GROUP = re.compile(rf"(?:docker-)?({naming.CONTAINER_ID.pattern})(?:\.scope)?")
_MOUNT_POINT = "sys/fs/cgroup"


@dataclass(frozen=True)
class DiskRates:
    """Limits of an instance's reads and writes of its disk in a second; 0 means no limit."""

    read_bytes: int = 0
    write_bytes: int = 0
    read_iops: int = 0
    write_iops: int = 0


@dataclass(frozen=True)
class Groups:
    """The control groups of a container.

    :ivar version: 1 or 2
    :ivar directories: directory by controller in version 1; in version 2 all controllers have the
        same directory, with an empty string as key
    """

    version: int
    directories: Mapping[str, Path]

    def read(self, controller: str, file: str) -> str | None:
        """Return the content of a file; None if the kernel or the host's configuration lacks it."""
        try:
            return (self._directory(controller) / file).read_text().strip()
        except (KeyError, FileNotFoundError):
            return None

    def write(self, controller: str, file: str, content: str) -> None:
        """Write a file.

        :raises KeyError: the host lacks the controller
        :raises OSError: the kernel refuses
        """
        (self._directory(controller) / file).write_text(content)

    def read_parent(self, controller: str, file: str) -> str | None:
        """Return the content of a file of the parent group; None like ``read``."""
        try:
            return (self._directory(controller).parent / file).read_text().strip()
        except (KeyError, FileNotFoundError):
            return None

    def _directory(self, controller: str) -> Path:
        return self.directories[controller if self.version == 1 else ""]


def version(root: Path = Path("/")) -> int:
    """Return the version of the host's control groups: 1 or 2.

    A host with both, as systemd's hybrid mode has them, counts as 1, because its controllers are
    in version 1.

    :param root: directory that contains /sys
    """
    return 2 if (root / _MOUNT_POINT / "cgroup.controllers").exists() else 1


def container_of_name(name: str) -> str | None:
    """Return the id of the container whose own control group has this name; None otherwise."""
    match = _CONTAINER_GROUP.fullmatch(name)
    return match[1] if match else None


def container_of_path(path: str) -> str | None:
    """Return the id of the container that a control group belongs to; None if there is none.

    :param path: path of the group below the root of its hierarchy
    """
    container_id, _ = _owner(path)
    return container_id


def container_of_process(pid: int, root: Path = Path("/")) -> str | None:
    """Return the id of the container that a process is in.

    Returns None if the process is in no container or in several, or if its groups can't be read:
    the process ended, or a tenant nested groups until their path was too long for the kernel.

    :param root: directory that contains /proc
    """
    try:
        paths = [path for _, path in _read_memberships(pid, root)]
    except OSError:
        return None
    found = {container_of_path(path) for path in paths} - {None}
    return found.pop() if len(found) == 1 else None


def processes() -> Iterator[tuple[int, str | None]]:
    """Yield each process of the host, and the id of its container; see ``container_of_process``."""
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        yield pid, container_of_process(pid)


def groups(pid: int, container_id: str, root: Path = Path("/")) -> Groups:
    """Return the control groups of a container.

    They are not always those of its first process: systemd moves itself to a group below.

    :param pid: id of the container's first process
    :param root: directory that contains /proc and /sys
    :raises ProcessLookupError: the process does not exist, or is not in the container
    :raises OSError: the kernel can't return the groups, because their path is too long
    """
    try:
        memberships = list(_read_memberships(pid, root))
    except FileNotFoundError as error:
        raise ProcessLookupError(f"process {pid} does not exist") from error
    directories = {}
    for controllers, path in memberships:
        owner, own_path = _owner(path)
        if owner == container_id:
            directory = root / _MOUNT_POINT / controllers / own_path.lstrip("/")
            directories.update(dict.fromkeys(controllers.split(","), directory))
    found = Groups(version(root), directories)
    if ("memory" if found.version == 1 else "") not in directories:
        raise ProcessLookupError(f"process {pid} is not in container {container_id}")
    return found


def read_oom_kills(pid: int, container_id: str, root: Path = Path("/")) -> int:
    """Return how many processes of a container the kernel killed because memory ran out.

    Counts since the container's start; returns 0 if the container no longer runs.

    :param pid: id of the container's first process
    :param root: directory that contains /proc and /sys
    """
    try:
        found = groups(pid, container_id, root)
    except ProcessLookupError:
        return 0
    events = found.read(*OOM_FILES[found.version]) or ""
    match = re.search(r"^oom_kill ([0-9]+)$", events, re.MULTILINE)
    return int(match[1]) if match else 0


def parse_number_list(text: str) -> frozenset[int]:
    """Return the numbers of a list in the kernel's format, such as ``0-2,5``."""
    ends = [part.partition("-") for part in text.split(",") if part]
    return frozenset(
        number for first, _, last in ends for number in range(int(first), int(last or first) + 1)
    )


def disk_of(path: str, sysfs: Path = Path("/sys")) -> str | None:
    """Return the device number, such as ``254:0``, of the whole disk that a device is part of.

    The whole disk, because the kernel does not limit the rates of a partition.

    :param path: path of a block device; for any other path the function returns None
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
    """Return the limits of a container's disk rates.

    :param disk: device number of the disk, such as ``254:0``
    """
    rates = {}
    for field, (file, key) in THROTTLES.items():
        if found.version == 1:
            values = _fields_of(disk, found.read("blkio", file))[:1]
        else:
            values = [
                value.partition("=")[2]
                for value in _fields_of(disk, found.read("io", "io.max"))
                if value.startswith(f"{key}=")
            ]
        rates[field] = int(values[0]) if values and values[0] != "max" else 0
    return DiskRates(**rates)


def _fields_of(disk: str, text: str | None) -> list[str]:
    """Return the fields after the device number in the first line about a disk."""
    for line in (text or "").split("\n"):
        device, *fields = line.split() or [""]
        if device == disk:
            return fields
    return []


def _read_memberships(pid: int, root: Path) -> Iterator[tuple[str, str]]:
    """Yield the controllers, with commas, and the path of each control group of a process.

    :raises FileNotFoundError: the process does not exist
    :raises ProcessLookupError: the process ended meanwhile
    :raises OSError: the path of a group is too long for the kernel
    """
    for line in (root / f"proc/{int(pid)}/cgroup").read_bytes().split(b"\n"):
        _, separator, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        if separator:
            yield os.fsdecode(controllers), os.fsdecode(path)


def _owner(path: str) -> tuple[str | None, str]:
    """Return the id of the container that a group belongs to, and the path of its own group."""
    names = path.split("/")
    for number, name in enumerate(names, 1):
        if container_id := container_of_name(name):
            return container_id, "/".join(names[:number])
    return None, path
