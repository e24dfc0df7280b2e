# SPDX-License-Identifier: Apache-2.0
"""What is shown on a terminal, above all how far a long work is."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_SECONDS = 0.2
_WIDTH = 30
_MEGABYTE = 10**6


class Bar:
    """A bar on a terminal; nothing elsewhere.

    :param total: how many bytes there are; it may be wrong, since sparse files take less and an
        archive's own records more
    """

    def __init__(self, total: int, what: str) -> None:
        self._total = total
        self._what = what
        self._done = 0
        self._shown_at = 0.0
        self._terminal = sys.stderr.isatty()

    def add(self, count: int) -> None:
        """Tell that so many bytes went by."""
        self._done += count
        if self._terminal and time.monotonic() - self._shown_at > _SECONDS:
            self._shown_at = time.monotonic()
            share = min(self._done / self._total, 1) if self._total else 1
            bar = "#" * int(share * _WIDTH)
            megabytes = self._done / _MEGABYTE
            sys.stderr.write(f"\r{self._what} [{bar:{_WIDTH}}] {share:4.0%} {megabytes:.0f} MB")
            sys.stderr.flush()

    def end(self) -> None:
        """Leave what was done in the place of the bar."""
        if self._terminal:
            megabytes = self._done / _MEGABYTE
            sys.stderr.write(f"\r{self._what}: {megabytes:.0f} MB{' ' * _WIDTH}\n")


def shown(chunks: Iterable[bytes], bar: Bar) -> Iterator[bytes]:
    """Yield the chunks and show how far they are."""
    for chunk in chunks:
        bar.add(len(chunk))
        yield chunk
    bar.end()


def used_bytes(source: Path) -> int:
    """Return how many bytes the files below a folder have; those that can't be looked at none."""
    found = 0
    for folder, _, files in os.walk(source):
        for name in files:
            with suppress(OSError):
                found += os.lstat(os.path.join(folder, name)).st_size
    return found


def printable(text: str) -> str:
    """Return a text with which nobody can steer a terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
