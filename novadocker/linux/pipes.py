# SPDX-License-Identifier: Apache-2.0
"""Pipes between a thread of this process and the privileged process.

The privileged process duplicates the pipe's end, and accepts no other file than a pipe.
"""

from __future__ import annotations

import fcntl
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import IO

_CHUNK_BYTES = 256 << 10
# fs.pipe-max-size: the largest pipe of an unprivileged user by default. A large pipe saves switches
# between reader and writer.
_PIPE_BYTES = 1 << 20

Write = Callable[[tuple[int, int]], int]
"""Function that writes a stream to a pipe, given as process id and file descriptor.

It returns the number of bytes of content in the stream.
"""


class StreamError(Exception):
    """A stream is incomplete or malformed."""


@contextmanager
def read_from(write: Write) -> Iterator[tuple[Iterator[bytes], Future[int]]]:
    """Run ``write`` in a thread. Yield the chunks of its stream, and its result or exception."""
    read, fill = os.pipe()
    # EPERM: the user's pipes exceed fs.pipe-user-pages-soft, so this pipe keeps its default size.
    with suppress(PermissionError):
        fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    with ThreadPoolExecutor(1) as thread, os.fdopen(read, "rb", buffering=0) as source:
        # The source is closed at the end of the block, before the executor waits for the thread. So
        # a thread that still writes gets EPIPE and ends.
        yield _chunks(source), thread.submit(_write, write, fill)


@contextmanager
def written_with(chunks: Iterable[bytes]) -> Iterator[tuple[int, int]]:
    """Write chunks to a pipe in a thread. Yield this process's id and the descriptor to read from.

    An exception of ``chunks`` takes precedence over one of the block.

    :raises StreamError: the block did not read all chunks
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
            raise StreamError("the stream has data after its end")


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def await_data(descriptor: int, seconds: float) -> None:
    """Wait until a read of a pipe does not block.

    :raises TimeoutError: nothing arrives within ``seconds``
    """
    # select(2) supports no descriptor above 1023, so poll(2) is used.
    arrivals = select.poll()
    arrivals.register(descriptor, select.POLLIN)
    if not arrivals.poll(max(seconds, 0) * 1000):
        raise TimeoutError(f"no data arrived within {max(seconds, 0):.0f} s")


def write_within(descriptor: int, data: bytes, seconds: float) -> None:
    """Write all of ``data`` to a descriptor that does not block.

    :raises TimeoutError: the other end does not read all of it within ``seconds``
    """
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    end = time.monotonic() + seconds
    view = memoryview(data)
    while view:
        if not room.poll(max(end - time.monotonic(), 0) * 1000):
            raise TimeoutError(f"the other end read no data within {seconds:.0f} s")
        with suppress(BlockingIOError):
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
