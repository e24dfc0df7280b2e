# SPDX-License-Identifier: Apache-2.0
"""Output on a terminal: the progress of long work, and text that is safe to print."""

import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from novadocker.linux import walk

_SECONDS = 0.2
_WIDTH = 30
_MEGABYTE = 10**6


class Bar:
    """A progress bar on stderr. Prints nothing if stderr is not a terminal.

    :param total: expected number of bytes; it may be inexact, because sparse files take fewer bytes
        and an archive has headers
    :param what: description of the work
    """

    def __init__(self, total: int, what: str) -> None:
        self._total = total
        self._what = what
        self._done = 0
        self._shown_at = 0.0
        self._terminal = sys.stderr.isatty()

    def add(self, count: int) -> None:
        """Add a number of bytes that were processed."""
        self._done += count
        if self._terminal and time.monotonic() - self._shown_at > _SECONDS:
            self._shown_at = time.monotonic()
            share = min(self._done / self._total, 1) if self._total else 1
            bar = "#" * int(share * _WIDTH)
            megabytes = self._done / _MEGABYTE
            sys.stderr.write(f"\r{self._what} [{bar:{_WIDTH}}] {share:4.0%} {megabytes:.0f} MB")
            sys.stderr.flush()

    def end(self) -> None:
        """Replace the bar by the number of bytes that were processed."""
        if self._terminal:
            megabytes = self._done / _MEGABYTE
            sys.stderr.write(f"\r{self._what}: {megabytes:.0f} MB{' ' * _WIDTH}\n")


def shown(chunks: Iterable[bytes], bar: Bar) -> Iterator[bytes]:
    """Yield the chunks and show their progress."""
    for chunk in chunks:
        bar.add(len(chunk))
        yield chunk
    bar.end()


def used_bytes(source: Path) -> int:
    """Return the size of all files below a directory, without those that can't be read."""
    size = 0
    top = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # A name that is too long ends the walk.
        with suppress(OSError):
            for found in walk.Walk(top, tolerate=lambda _error: True, mounts=True):
                if found.status and not stat.S_ISDIR(found.status.st_mode):
                    size += found.status.st_size
    finally:
        os.close(top)
    return size


def printable(text: str) -> str:
    """Return a text with escapes for all characters that could control a terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
