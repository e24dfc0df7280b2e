# SPDX-License-Identifier: Apache-2.0
"""Each server's lines of the kernel's log, in files of a bounded size.

Two files for each server, the older one with ``.1``. What one server makes the kernel say takes no
room of another's.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("/var/log/novadocker/kernel")

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LARGEST = 256 << 10
# a report of a kill for want of memory has a hundred lines
_MOST_AT_ONCE = 500
_PER_SECOND = 20.0
_OLD_SECONDS = 7 * 86400


@dataclass
class _Allowance:
    """How many lines a server may still write, and how many it could not."""

    lines: float
    at: float
    dropped: int = 0


class Rings:
    """Writes the files; not safe to share between threads.

    :param folder: of the files; made if need be
    :param clock: for the rate, in seconds
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._allowances: dict[str, _Allowance] = {}

    def write(self, instance_uuid: str, lines: list[str]) -> int:
        """Append lines, as many as the server may; return how many were dropped.

        :param lines: without their ends
        :raises OSError: the disk takes nothing
        """
        allowance = self._allowance(instance_uuid)
        taken = lines[: int(allowance.lines)]
        allowance.lines -= len(taken)
        dropped = len(lines) - len(taken)
        if taken and allowance.dropped:
            taken.insert(0, f"-- {allowance.dropped} lines are missing: too many at a time --")
            allowance.dropped = 0
        allowance.dropped += dropped
        if taken:
            self._append(path_of(self._folder, instance_uuid), "".join(f"{t}\n" for t in taken))
        return dropped

    def remove_old(self, kept: Set[str]) -> None:
        """Remove the files of servers that are gone, and said nothing for a week.

        :param kept: the UUIDs of those that are not gone
        """
        for instance_uuid in self._allowances.keys() - kept:
            del self._allowances[instance_uuid]
        oldest = time.time() - _OLD_SECONDS
        with suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                match = _UUID.match(entry.name)
                with suppress(FileNotFoundError):
                    if match and match[0] not in kept and entry.stat().st_mtime < oldest:
                        os.unlink(entry.path)

    def _allowance(self, instance_uuid: str) -> _Allowance:
        now = self._clock()
        found = self._allowances.setdefault(instance_uuid, _Allowance(_MOST_AT_ONCE, now))
        found.lines = min(_MOST_AT_ONCE, found.lines + (now - found.at) * _PER_SECOND)
        found.at = now
        return found

    def _append(self, path: Path, text: str) -> None:
        self._folder.mkdir(0o750, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        with os.fdopen(descriptor, "a", encoding="utf-8") as output:
            output.write(text)
            size = output.tell()
        if size > _LARGEST:
            path.replace(older(path))


def path_of(folder: Path, instance_uuid: str) -> Path:
    """Return the file of a server.

    :raises ValueError: that is no UUID
    """
    if not _UUID.fullmatch(instance_uuid):
        raise ValueError(f"{instance_uuid!r} is no UUID of a server")
    return folder / f"{instance_uuid}.log"


def older(path: Path) -> Path:
    """Return where a file's older lines are."""
    return path.with_name(f"{path.name}.1")


def read(folder: Path, instance_uuid: str) -> Iterator[str]:
    """Yield a server's lines with their ends, the oldest first.

    :raises ValueError: that is no UUID
    :raises OSError: they can't be read; none at all is no error
    """
    path = path_of(folder, instance_uuid)
    for file in (older(path), path):
        with suppress(FileNotFoundError), file.open(encoding="utf-8", errors="replace") as source:
            yield from source
