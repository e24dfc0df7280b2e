# SPDX-License-Identifier: Apache-2.0
"""An archive that is used while it arrives: its layers go on to the engine before its end is here.

What is sent on early are bytes without a meaning: the engine makes an image of them only if the
manifest follows, which names those that turned out to be layers with the right digests. The lowest
layer is unpacked meanwhile, as the engine does for an archive that is a layer and nothing else: so
it writes it once, where it would keep a copy of an image's archive first.
"""

import contextlib
import errno
import hashlib
import io
import os
import posixpath
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

from novadocker.virt.docker.images import tar_check
from novadocker.virt.docker.images.archive import is_tar
from novadocker.virt.docker.images.regions import (
    CHUNK_BYTES,
    ArchiveError,
    Content,
    Region,
    is_plain,
)
from novadocker.virt.docker.images.tar_reader import parse
from novadocker.virt.docker.images.writer import Sent, header, padding

# a smaller file may be anything, and is quickly sent when it is known to be a layer
_SMALLEST_LAYER = 1 << 20
_PLAIN_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)

Unpack = Callable[[Iterator[bytes]], str]
"""Has the engine unpack a layer; returns its digest as the engine found it, or "" if it can't."""


class Guess:
    """Guesses once for an archive.

    Engines before 25 save their layers in any order, each after a description that names the layer
    below it; later ones save them among the blobs of an OCI layout, by digest, perhaps after the
    configuration. Other programs begin with the lowest.
    """

    def __init__(self) -> None:
        self._digest = ""
        self._stacked: dict[str, bool] = {}
        self._first = True
        self._guessed = False

    def note(self, name: str, content: bytes) -> None:
        """Take a hint from a small file."""
        folder, last = posixpath.split(name)
        if not content.startswith(b"{"):
            # a layer that is small is one, too
            self._first = self._first and posixpath.splitext(last)[1] != ".tar"
            return
        try:
            found = parse(content, "file")
        except ArchiveError:
            return
        if last == "json":
            self._stacked[folder] = "parent" in found
        rootfs = found.get("rootfs")
        digests = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        if isinstance(digests, list) and digests:
            self._digest = str(digests[0]).rpartition(":")[2]

    def is_lowest(self, name: str) -> bool:
        """Tell whether a large file that looks like a layer is the lowest; True but once."""
        if self._guessed:
            return False
        first, self._first = self._first, False
        folder = posixpath.dirname(name)
        if folder in self._stacked:
            self._guessed = not self._stacked[folder]
        elif self._digest:
            self._guessed = self._digest in name
        else:
            self._guessed = first and not folder.startswith("blobs/")
        return self._guessed


class Arrival(io.RawIOBase):
    """A file that one thread writes, and another reads as far as it is written.

    :ivar early: what ``layers`` has sent on, by where in the file it is
    :ivar unpacked: SHA-256 in hex of the layer that the engine has unpacked; empty if it has none
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self.early: dict[Content, Sent] = {}
        self.unpacked = ""
        self._descriptor = file.fileno()
        self._size = self._awaited = 0
        self._ended = self._abandoned = False
        self._changed = threading.Condition()
        self._fetched: Future[None]

    # -- for the one who writes ------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        return self._descriptor

    def write(self, chunk: bytes) -> int:  # type: ignore[override]
        """Write all of a piece.

        :raises OSError: there is no room, or nobody wants the file any more
        """
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._descriptor, view) :]
        with self._changed:
            if self._abandoned:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            self._size += len(chunk)
            # not for each piece of 64 KiB: to wake somebody takes longer than to write it
            if self._size >= self._awaited:
                self._changed.notify()
        return len(chunk)

    def truncate(self, size: int | None = None) -> int:
        """Take back what was written, as Nova does when a signature is wrong."""
        os.ftruncate(self._descriptor, size or 0)
        return size or 0

    # -- for the one who reads ---------------------------------------------------------------------

    def layers(self, unpack: Unpack | None) -> Iterator[bytes]:
        """Return what look like layers as files of a tar archive, in small pieces.

        Raises what keeps the file from being complete.

        :param unpack: gets what may be the lowest layer instead

        :raises ArchiveError: the file ends in the middle of a layer, or that has sparse files
        """
        position = 0
        guess = Guess()
        while (entry := self._entry_at(position)) is not None:
            begin = position + tarfile.BLOCKSIZE
            content = Region(self._descriptor, begin, entry.size)
            if entry.type not in _PLAIN_FILES:
                pass
            elif content.size < _SMALLEST_LAYER:
                if self._reaches(begin + content.size):
                    guess.note(entry.name, b"".join(content.chunks()))
            elif self._is_layer(content):
                if unpack and guess.is_lowest(entry.name):
                    self.unpacked = unpack(self._chunks(begin, begin + content.size))
                else:
                    yield from self._sent(content)
            position = begin + content.size + len(padding(content.size))

    def _sent(self, content: Region) -> Iterator[bytes]:
        name = f"early-{len(self.early)}.tar"
        digest = hashlib.sha256()
        yield header(name, content.size)
        for chunk in self._chunks(content.offset, content.offset + content.size):
            digest.update(chunk)
            yield chunk
        yield padding(content.size)
        self.early[content] = Sent(name, digest.hexdigest())

    def complete(self) -> Region:
        """Wait for the end; return the whole file.

        Raises what kept the file from being complete.
        """
        self._fetched.result()
        return Region(self._descriptor, 0, self._size)

    def _entry_at(self, position: int) -> tarfile.TarInfo | None:
        """Return the header at a position; None if there is none that is well-formed."""
        if not self._reaches(position + tarfile.BLOCKSIZE):
            return None
        block = os.pread(self._descriptor, tarfile.BLOCKSIZE, position)
        with contextlib.suppress(tarfile.HeaderError):
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if entry.size >= 0:
                return entry
        return None

    def _is_layer(self, content: Region) -> bool:
        return (
            self._reaches(content.offset + tarfile.BLOCKSIZE)
            and is_plain(content)
            and is_tar(content)
        )

    def _chunks(self, begin: int, end: int) -> Iterator[bytes]:
        check = tar_check.Check()
        while begin < end:
            wanted = min(CHUNK_BYTES, end - begin)
            found = self._reaches(begin + wanted)
            chunk = os.pread(self._descriptor, wanted, begin) if found else b""
            if not chunk:
                # why it is short tells more
                self._fetched.result()
                raise ArchiveError("it is truncated")
            check.feed(chunk)
            yield chunk
            begin += len(chunk)

    def _reaches(self, size: int) -> bool:
        """Wait until so much is here; False if it never will be."""
        with self._changed:
            self._awaited = size
            self._changed.wait_for(lambda: self._size >= size or self._ended)
            return self._size >= size

    # -- the thread -----------------------------------------------------------------------------

    def _fetch(self, fetch: Callable[["Arrival"], None]) -> None:
        try:
            fetch(self)
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _abandon(self) -> None:
        with self._changed:
            self._abandoned = True


@contextlib.contextmanager
def arriving(folder: Path, fetch: Callable[[Arrival], None]) -> Iterator[Arrival]:
    """Fetch a file without a name in a thread, which ends with the block.

    The file's room is free again when the block has failed, and soon when it has not.

    :param folder: where there is room for the file
    :param fetch: writes the file
    """
    with contextlib.ExitStack() as failed:
        # without a name in the folder: gone even if nova-compute is killed
        file = failed.enter_context(tempfile.TemporaryFile(dir=folder, prefix="novadocker-"))
        arrival = Arrival(file)
        with ThreadPoolExecutor(1) as threads:
            arrival._fetched = threads.submit(arrival._fetch, fetch)
            try:
                yield arrival
            finally:
                arrival._abandon()
        failed.pop_all()
    # a kernel that discards freed blocks takes a second for gigabytes
    threading.Thread(target=file.close, name="arrival").start()
