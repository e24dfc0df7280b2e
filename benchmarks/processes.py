# SPDX-License-Identifier: Apache-2.0
"""Disk traffic and memory of processes and their children, from the kernel's counters."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# The value for /proc/<pid>/clear_refs that resets the peak, see proc(5).
_FORGET_THE_PEAK = "5"


@dataclass(frozen=True)
class Traffic:
    """Bytes read from and written to file systems' devices, without reads from the page cache.

    A write counts when a page becomes dirty, even if its file is deleted before the disk has it.
    """

    read: int
    written: int

    def since(self, before: "Traffic") -> "Traffic":
        """Return the difference."""
        return Traffic(self.read - before.read, self.written - before.written)


def traffic(pids: Iterable[int]) -> Traffic:
    """Return the bytes of processes, of their children, and of the children's ended children."""
    read = written = 0
    for pid in tree(pids):
        # If a child ends meanwhile, its parent's counters include its bytes.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found = _fields(Path(f"/proc/{pid}/io"))
            read, written = read + found["read_bytes"], written + found["write_bytes"]
    return Traffic(read, written)


class Memory:
    """The growth of processes' memory from now to its peak.

    :param pids: the processes; their present children count, later children do not
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._before: dict[int, int] = {}
        for pid in tree(pids):
            Path(f"/proc/{pid}/clear_refs").write_text(_FORGET_THE_PEAK)
            self._before[pid] = _fields(Path(f"/proc/{pid}/status"))["VmRSS"]

    def growth(self) -> int:
        """Return the growth in bytes: the sum of each process's peak, whenever it was."""
        return 1024 * sum(
            _fields(Path(f"/proc/{pid}/status"))["VmHWM"] - before
            for pid, before in self._before.items()
        )


def memory(pids: Iterable[int]) -> int:
    """Return the bytes of processes, in which a page counts by its share (PSS of proc(5))."""
    total = 0
    for pid in pids:
        # A process without memory of its own, or that ended meanwhile, has no such file.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += _fields(Path(f"/proc/{pid}/smaps_rollup")).get("Pss", 0)
    return 1024 * total


def tree(pids: Iterable[int]) -> Iterator[int]:
    """Return processes and all their children."""
    for pid in pids:
        yield pid
        for thread in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                yield from tree(map(int, thread.read_text().split()))


def _fields(file: Path) -> dict[str, int]:
    found = re.findall(r"(?m)^(\w+):\s+(\d+)(?: kB)?$", file.read_text())
    return {name: int(value) for name, value in found}
