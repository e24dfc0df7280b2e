# SPDX-License-Identifier: Apache-2.0
"""Files of bounded size with the lines of the kernel's log about each instance.

An instance has two files; the older one has the suffix ``.1``. Because each instance has its own
files, one that fills the log does not displace the lines of another.
"""

import os
import time
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from novadocker import naming

FOLDER = Path("/var/log/novadocker/kernel")

_LARGEST = 256 << 10
# The report of an out-of-memory kill has a hundred lines.
_MOST_AT_ONCE = 500
_PER_SECOND = 20.0
_OLD_SECONDS = 7 * 86400


@dataclass
class _Allowance:
    """The number of lines that an instance may still write, and the number that it could not."""

    lines: float
    at: float
    dropped: int = 0


class Rings:
    """The writer of the files; not safe to share between threads.

    :param folder: directory of the files; created if it does not exist
    :param clock: returns the time in seconds, for the rate limit
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._allowances: dict[str, _Allowance] = {}

    def write(self, instance_uuid: str, lines: list[str]) -> int:
        """Append as many lines as the instance's rate limit allows. Return the number dropped.

        :param lines: lines without line feeds
        :raises OSError: the file can't be written
        """
        allowance = self._allowance(instance_uuid)
        taken = lines[: int(allowance.lines)]
        allowance.lines -= len(taken)
        dropped = len(lines) - len(taken)
        if taken and allowance.dropped:
            taken.insert(0, f"-- the rate limit dropped {allowance.dropped} lines --")
            allowance.dropped = 0
        allowance.dropped += dropped
        if taken:
            self._append(path_of(self._folder, instance_uuid), "".join(f"{t}\n" for t in taken))
        return dropped

    def remove_old(self, kept: Set[str]) -> None:
        """Delete the files of deleted instances that were not written for a week.

        :param kept: UUIDs of the instances that exist
        """
        for instance_uuid in self._allowances.keys() - kept:
            del self._allowances[instance_uuid]
        oldest = time.time() - _OLD_SECONDS
        with suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                match = naming.UUID.match(entry.name)
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
    """Return the path of an instance's newer file.

    :raises ValueError: ``instance_uuid`` is not a UUID
    """
    if not naming.UUID.fullmatch(instance_uuid):
        raise ValueError(f"{instance_uuid!r} is not the UUID of a server")
    return folder / f"{instance_uuid}.log"


def older(path: Path) -> Path:
    """Return the path of the file with the older lines."""
    return path.with_name(f"{path.name}.1")


def read(folder: Path, instance_uuid: str) -> Iterator[str]:
    """Yield an instance's lines with their line feeds, the oldest first.

    Yields nothing if the instance has no files.

    :raises ValueError: ``instance_uuid`` is not a UUID
    :raises OSError: a file can't be read
    """
    path = path_of(folder, instance_uuid)
    for file in (older(path), path):
        with suppress(FileNotFoundError), file.open(encoding="utf-8", errors="replace") as source:
            yield from source
