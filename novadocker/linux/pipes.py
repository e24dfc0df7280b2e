# SPDX-License-Identifier: Apache-2.0
"""Pipes between a thread of this process and the privileged one, which can open no socket's end."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import IO

_CHUNK_BYTES = 256 << 10
# fewer changes between reader and writer; the most that a user gets by default
_PIPE_BYTES = 1 << 20

Write = Callable[[tuple[int, int]], int]
"""Writes a stream to a process's descriptor of a pipe; returns the bytes of content."""


class StreamError(Exception):
    """A stream is not complete, or not well-formed."""


@contextmanager
def read_from(write: Write) -> Iterator[tuple[Iterator[bytes], Future[int]]]:
    """Have a thread write a stream; give its pieces, and what the thread returns or raises."""
    read, fill = os.pipe()
    # a user may have no more of them; it goes without
    with suppress(PermissionError):
        fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    with ThreadPoolExecutor(1) as thread, os.fdopen(read, "rb", buffering=0) as source:
        # with the block the source closes, and who still writes to it ends
        yield _chunks(source), thread.submit(_write, write, fill)


@contextmanager
def written_with(chunks: Iterable[bytes]) -> Iterator[tuple[int, int]]:
    """Have a thread write pieces; give the process and the descriptor that they are read from.

    What the pieces raise goes before what the block raises.

    :raises StreamError: the block did not read all of them
    """
    read, fill = os.pipe()
    with ThreadPoolExecutor(1) as thread:
        writing = thread.submit(_fill, chunks, fill)
        try:
            yield os.getpid(), read
        finally:
            os.close(read)
            whole = writing.result()
        if not whole:
            raise StreamError("it goes on behind its end")


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of a piece."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _write(write: Write, fill: int) -> int:
    try:
        return write((os.getpid(), fill))
    finally:
        os.close(fill)


def _fill(chunks: Iterable[bytes], fill: int) -> bool:
    try:
        for chunk in chunks:
            write_all(fill, chunk)
    except BrokenPipeError:
        return False
    finally:
        os.close(fill)
    return True


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while chunk := source.read(_CHUNK_BYTES):
        yield chunk
