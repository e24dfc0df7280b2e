# SPDX-License-Identifier: Apache-2.0
"""The inotify instances and pipes of each user of a host, from the file descriptors in /proc.

The kernel has no counter of them that can be read.
"""

import fcntl
import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

MOST_DESCRIPTORS = 100_000
"""The number of file descriptors after which a count ends, in about a second of CPU time."""

_INOTIFY = ("anon_inode:inotify", "inotify")
_PIPE = "pipe:["
# linux/nsfs.h
_NS_GET_PARENT = 0xB702
_NS_GET_OWNER_UID = 0xB704
# The kernel permits 32 levels (kernel/user_namespace.c).
_LEVELS = 33
# A process may end at any moment, and a security module may protect one.
_SKIPPED = (FileNotFoundError, ProcessLookupError, PermissionError)


@dataclass
class UserFiles:
    """The counts by user id.

    :ivar inotify: inotify instances. One in a user namespace counts for the user inside and for
        the user who created the namespace (kernel/ucount.c). One that several processes share
        counts several times
    :ivar pipes: pipes; each counts once
    """

    inotify: Counter[int] = field(default_factory=Counter)
    pipes: Counter[int] = field(default_factory=Counter)


def count(proc: str = "/proc", most: int = MOST_DESCRIPTORS) -> UserFiles:
    """Count until ``most`` file descriptors are read; linear in their number.

    :param proc: directory of the processes
    """
    found = UserFiles()
    pipes: set[str] = set()
    creators: dict[int, tuple[int, ...]] = {os.stat(f"{proc}/self/ns/user").st_ino: ()}
    for process in filter(str.isdigit, os.listdir(proc)):
        with suppress(*_SKIPPED):
            user = _effective_user(f"{proc}/{process}/status")
            for target in _targets(f"{proc}/{process}/fd"):
                most -= 1
                if most < 0:
                    return found
                if target in _INOTIFY:
                    for charged in (user, *_creators(f"{proc}/{process}/ns/user", creators)):
                        found.inotify[charged] += 1
                elif target.startswith(_PIPE) and target not in pipes:
                    pipes.add(target)
                    found.pipes[user] += 1
    return found


def highest(counts: Mapping[int, int]) -> int:
    """Return the count of the user who has most."""
    return max(counts.values(), default=0)


def _effective_user(path: str) -> int:
    with open(path, "rb") as status:
        for line in status:
            if line.startswith(b"Uid:"):
                return int(line.split()[2])
    raise FileNotFoundError(path)


def _targets(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                target = os.readlink(entry.path)
            except OSError:
                # A process has closed the file, or chosen a path that the kernel can't tell.
                continue
            yield target


def _creators(path: str, known: dict[int, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the creators of a user namespace and of those around it, but of the host's."""
    number = os.stat(path).st_ino
    if number not in known:
        known[number] = tuple(_read_creators(path, known))
    return known[number]


def _read_creators(path: str, known: Mapping[int, tuple[int, ...]]) -> Iterator[int]:
    namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(_LEVELS):
            (owner,) = struct.unpack("I", fcntl.ioctl(namespace, _NS_GET_OWNER_UID, b"\0" * 4))
            yield owner
            parent = fcntl.ioctl(namespace, _NS_GET_PARENT)
            os.close(namespace)
            namespace = parent
            number = os.fstat(namespace).st_ino
            if number in known:
                yield from known[number]
                return
    finally:
        os.close(namespace)
