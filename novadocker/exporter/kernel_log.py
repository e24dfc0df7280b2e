# SPDX-License-Identifier: Apache-2.0
"""The kernel's log, read as it is written, and no faster than is good for the host.

The format is in the kernel's Documentation/ABI/testing/dev-kmsg.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

PATH = "/dev/kmsg"

# a record of the kernel's is at most 1 KiB of text, escaped fourfold, and its dictionary
_LARGEST_RECORD = 8192
_MOST_PER_SECOND = 20_000
_FACILITY_KERNEL = 0


@dataclass(frozen=True)
class Record:
    """A line of the kernel's.

    :ivar sequence: its number
    :ivar microseconds: since the host's start
    :ivar task: the process that was running; None where the kernel does not tell
    :ivar text: with all but printable characters escaped
    """

    sequence: int
    microseconds: int
    task: int | None
    text: str


def parse(content: bytes) -> Record | None:
    """Return a record; None if it is none, or another program wrote it."""
    header, found, rest = content.partition(b";")
    fields = header.split(b",")
    try:
        level, sequence, microseconds = map(int, fields[:3])
    except ValueError:
        return None
    if not found or level >> 3 != _FACILITY_KERNEL:
        return None
    # with CONFIG_PRINTK_CALLER: T and the number of a thread, or C and that of a CPU
    callers = [field[8:] for field in fields[4:] if field.startswith(b"caller=T")]
    task = int(callers[0]) if callers and callers[0].isdigit() else None
    return Record(sequence, microseconds, task, rest.partition(b"\n")[0].decode("ascii", "replace"))


class KernelLog:
    """The log from now on. Beyond a rate it is passed over, and counted.

    :param descriptor: of PATH, that does not block; each read gives a record
    :ivar lost: records that were passed over, or overwritten before they were read
    """

    def __init__(
        self,
        descriptor: int,
        most_per_second: int = _MOST_PER_SECOND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.descriptor = descriptor
        self.lost = 0
        self._most = most_per_second
        self._clock = clock
        self._next: int | None = None
        self._second_ends = 0.0
        self._left = 0

    def close(self) -> None:
        """Close the log."""
        os.close(self.descriptor)

    def rest(self) -> float:
        """Return for how many seconds nothing is read, as too much was; 0 if it is read."""
        return 0.0 if self._left else max(0.0, self._second_ends - self._clock())

    def records(self) -> Iterator[Record]:
        """Yield what the kernel wrote since the last call."""
        if self._clock() >= self._second_ends:
            self._second_ends = self._clock() + 1
            self._left = self._most
        while self._left:
            self._left -= 1
            try:
                content = os.read(self.descriptor, _LARGEST_RECORD)
            except BrokenPipeError:
                # overwritten: the next read gives the oldest that there is
                continue
            except BlockingIOError:
                return
            if not content:
                return
            if (record := parse(content)) is not None:
                self._count(record.sequence)
                yield record
            elif (number := _sequence(content)) is not None:
                self._count(number)
        self.skip()

    def skip(self) -> None:
        """Pass over all that is written by now."""
        # what is no log can't be wound
        with suppress(OSError):
            os.lseek(self.descriptor, 0, os.SEEK_END)

    def _count(self, sequence: int) -> None:
        if self._next is not None and sequence > self._next:
            self.lost += sequence - self._next
        self._next = sequence + 1


def _sequence(content: bytes) -> int | None:
    fields = content.split(b",", 2)
    return int(fields[1]) if len(fields) > 2 and fields[1].isdigit() else None


def open_log(path: str = PATH) -> KernelLog:
    """Open the kernel's log, from now on.

    :raises OSError: it is not there, or the right to read it: CAP_SYSLOG
    """
    found = KernelLog(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    found.skip()
    return found
