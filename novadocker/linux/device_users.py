# SPDX-License-Identifier: Apache-2.0
"""The processes of a container that have a block device open; needs root.

Two uses are not found: a descriptor that is in flight in a Unix socket, and one that processes
pass on faster than they are looked at.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from novadocker.linux import cgroup, libc

_MOST_SEARCHES = 30
_HIDDEN = re.compile(r"[^\x20-\x7e]")
# Behind the name of the program in /proc/PID/stat (proc_pid_stat(5)).
_START_TIME = 19


def find(container_id: str, number: int) -> str:
    """Return the process of a container that has a block device open or mapped; empty if none.

    The device must be one that the container may no longer open. A process that has it open may
    start a child and end, so the search goes on until it finds no new process.

    :param number: device number
    """
    searched: set[tuple[str, str]] = set()
    for _ in range(_MOST_SEARCHES):
        found = _processes(container_id) - searched
        if not found:
            return ""
        for pid, _ in found:
            # A process may end meanwhile.
            with suppress(FileNotFoundError, ProcessLookupError):
                if number in open_devices(pid):
                    name = Path(f"/proc/{pid}/comm").read_text(errors="replace")[:-1]
                    return f"process {_HIDDEN.sub('?', name)!r}"
        searched |= found
    return "a process that has just started"


def open_devices(pid: str) -> Iterator[int]:
    """Yield the numbers of the block devices that a process has open or mapped.

    A thread may have file descriptors of its own (CLONE_FILES, clone(2)). The first thread shows
    neither files nor memory if it ended before the others.
    """
    for thread in os.listdir(f"/proc/{pid}/task"):
        for kind in ("fd", "map_files"):
            # A thread may end meanwhile.
            with suppress(FileNotFoundError, ProcessLookupError):
                for name in os.listdir(f"/proc/{thread}/{kind}"):
                    yield from _number(f"/proc/{thread}/{kind}/{name}")


def _processes(container_id: str) -> set[tuple[str, str]]:
    """Return the id and the start time of each process of a container."""
    found = set()
    for pid, container in cgroup.processes():
        if container == container_id:
            with suppress(FileNotFoundError, ProcessLookupError):
                fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
                found.add((str(pid), fields[_START_TIME].decode()))
    return found


def _number(path: str) -> Iterator[int]:
    # A tenant's program may serve the file (FUSE) and not answer. The kernel knows the type without
    # an answer, and refuses to tell it only for files that are no open devices.
    with suppress(OSError):
        mode, number = libc.cached_type(path)
        if stat.S_ISBLK(mode):
            yield number
