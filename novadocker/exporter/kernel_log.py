# SPDX-License-Identifier: Apache-2.0
"""Reading the kernel's log from /dev/kmsg at a limited rate.

The format is documented in the kernel's Documentation/ABI/testing/dev-kmsg.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

PATH = "/dev/kmsg"

# A record has at most 1 KiB of text, each byte of which may be escaped by four, and a dictionary.
_LARGEST_RECORD = 8192
_MOST_PER_SECOND = 20_000
_FACILITY_KERNEL = 0
# Flag of a line that is not a fragment.
_WHOLE = b"-"


@dataclass(frozen=True)
class Record:
    """A line of the kernel's log.

    :ivar sequence: sequence number
    :ivar microseconds: time since the host's boot
    :ivar task: id of the thread that ran; None if the kernel does not record it
    :ivar text: the text, with escapes for all characters that are not printable
    :ivar continues: the text is the rest of a line whose begin is in an earlier record
    """

    sequence: int
    microseconds: int
    task: int | None
    text: str
    continues: bool = False


def parse(content: bytes) -> Record | None:
    """Parse a record. Return None if it is malformed or a program, not the kernel, wrote it."""
    header, found, rest = content.partition(b";")
    fields = header.split(b",")
    try:
        level, sequence, microseconds = map(int, fields[:3])
    except ValueError:
        return None
    if not found or level >> 3 != _FACILITY_KERNEL:
        return None
    # CONFIG_PRINTK_CALLER adds "caller=T" with a thread's id or "caller=C" with a CPU's number.
    callers = [field[8:] for field in fields[4:] if field.startswith(b"caller=T")]
    task = int(callers[0]) if callers and callers[0].isdigit() else None
    text = rest.partition(b"\n")[0].decode("ascii", "replace")
    return Record(sequence, microseconds, task, text, continues=fields[3:4] != [_WHOLE])


class KernelLog:
    """The kernel's log. Records beyond a rate are skipped and counted.

    :param descriptor: non-blocking file descriptor of PATH; each read returns one record
    :ivar lost: number of records that were skipped, or overwritten before they were read
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
        """Return for how many seconds the rate limit pauses reading; 0 if it does not."""
        return 0.0 if self._left else max(0.0, self._second_ends - self._clock())

    def records(self) -> Iterator[Record]:
        """Yield the records that the kernel wrote since the last call."""
        if self._clock() >= self._second_ends:
            self._second_ends = self._clock() + 1
            self._left = self._most
        while self._left:
            self._left -= 1
            try:
                content = os.read(self.descriptor, _LARGEST_RECORD)
            except BrokenPipeError:
                # The record was overwritten; the next read returns the oldest record that exists.
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
        """Skip all records that are written by now."""
        # Errors are ignored, because tests use a pipe, which can't seek.
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
    """Open the kernel's log at its end.

    :raises OSError: the file does not exist, or CAP_SYSLOG is missing
    """
    found = KernelLog(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    found.skip()
    return found
