# SPDX-License-Identifier: Apache-2.0
"""What processes and their children read, wrote and held in memory, as the kernel counts it."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# of /proc/<pid>/clear_refs, see proc(5)
_FORGET_THE_PEAK = "5"


@dataclass(frozen=True)
class Traffic:
    """Bytes read from and written to file systems' devices; those of the page cache do not count.

    What is written counts when a page becomes dirty, even if its file is gone before the disk
    has it.
    """

    read: int
    written: int

    def since(self, before: "Traffic") -> "Traffic":
        """Return the difference."""
        return Traffic(self.read - before.read, self.written - before.written)


def traffic(pids: Iterable[int]) -> Traffic:
    """Return the bytes of processes, of their children, and of those of these that ended."""
    read = written = 0
    for pid in tree(pids):
        # a child may end while it is looked at; its parent has its bytes then
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found = _fields(Path(f"/proc/{pid}/io"))
            read, written = read + found["read_bytes"], written + found["write_bytes"]
    return Traffic(read, written)


class Memory:
    """How much more memory processes hold at most than they held in the beginning.

    :param pids: the processes; their children of this moment count, later ones do not
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._before: dict[int, int] = {}
        for pid in tree(pids):
            Path(f"/proc/{pid}/clear_refs").write_text(_FORGET_THE_PEAK)
            self._before[pid] = _fields(Path(f"/proc/{pid}/status"))["VmRSS"]

    def growth(self) -> int:
        """Return the bytes; each process's peak counts, whenever it was."""
        return 1024 * sum(
            _fields(Path(f"/proc/{pid}/status"))["VmHWM"] - before
            for pid, before in self._before.items()
        )


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
