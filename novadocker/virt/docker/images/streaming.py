# SPDX-License-Identifier: Apache-2.0
"""An archive that is sent to the engine layer by layer while it is downloaded.

The engine stores the files that are sent early, but creates an image only from the manifest, which
is sent last and names only layers whose digests are right. The lowest layer is sent as an archive
of its own, which the engine unpacks at once. So the engine writes this layer once, whereas it
copies the archive of an image before it unpacks the layers.
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

from novadocker.virt.docker.images import room, tar_check
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

# A smaller file may be metadata. If it is a layer, sending it after the download is fast.
_SMALLEST_LAYER = 1 << 20
_PLAIN_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)

Unpack = Callable[[Iterator[bytes]], str]
"""Unpacks a layer in the engine; returns its digest, or an empty string on failure."""


class Guess:
    """A guess which file of an archive is the lowest layer; it is made once for an archive.

    Engines before 25 save the layers in any order, each after a file that names the layer below it.
    Later engines save an OCI layout, in which a layer's name is its digest and the configuration
    may come first. Other programs save the lowest layer first.
    """

    def __init__(self) -> None:
        self._digest = ""
        self._stacked: dict[str, bool] = {}
        self._first = True
        self._guessed = False

    def note(self, name: str, content: bytes) -> None:
        """Read a small file for hints at the lowest layer."""
        folder, last = posixpath.split(name)
        if not content.startswith(b"{"):
            # A small file may be the lowest layer, too.
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
        """Return True if a large file that looks like a layer is the lowest. True only once."""
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
    """A file that one thread writes while another one reads the written part.

    :param share: of the budget for such files, which counts the file
    :ivar early: the layers that ``layers`` has sent, by their region of the file
    :ivar unpacked: SHA-256 in hex of the layer that the engine has unpacked; empty if there is none
    """

    def __init__(self, file: IO[bytes], share: room.Share) -> None:
        super().__init__()
        self._share = share
        self.early: dict[Content, Sent] = {}
        self.unpacked = ""
        self._descriptor = file.fileno()
        self._size = self._awaited = 0
        self._ended = self._abandoned = False
        self._changed = threading.Condition()
        self._fetched: Future[None]

    # -- for the writing thread ------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        return self._descriptor

    def write(self, chunk: bytes) -> int:  # type: ignore[override]
        """Write all of a chunk.

        :raises NoRoomError: the budget has no room for it
        :raises OSError: the file can't be written, or the block of ``arriving`` has ended
        """
        self._share.use(len(chunk))
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._descriptor, view) :]
        with self._changed:
            if self._abandoned:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            self._size += len(chunk)
            # A notify takes longer than the write of a chunk of 64 KiB, so it is done if needed.
            if self._size >= self._awaited:
                self._changed.notify()
        return len(chunk)

    def truncate(self, size: int | None = None) -> int:
        """Truncate the file, as Nova does if an image's signature is wrong."""
        os.ftruncate(self._descriptor, size or 0)
        return size or 0

    # -- for the reading thread --------------------------------------------------------------------

    def layers(self, unpack: Unpack | None) -> Iterator[bytes]:
        """Yield the files that look like layers as files of a tar archive, in chunks.

        Raises the writer's error if the file can't be completed.

        :param unpack: if given, receives the file that may be the lowest layer
        :raises ArchiveError: the file ends within a layer, or a layer has sparse files
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
                    guess.note(entry.name, self._small(content))
            elif self._is_layer(content):
                if unpack and guess.is_lowest(entry.name):
                    self.unpacked = unpack(self._chunks(begin, begin + content.size))
                else:
                    yield from self._sent(content)
            position = begin + content.size + len(padding(content.size))

    def _small(self, content: Region) -> bytes:
        try:
            return b"".join(content.chunks())
        except ArchiveError:
            # Nova truncates the file before it raises the error of a wrong signature.
            self._fetched.result()
            raise

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
        """Wait until the file is complete, and return it.

        Raises the writer's error if the file can't be completed.
        """
        self._fetched.result()
        return Region(self._descriptor, 0, self._size)

    def _entry_at(self, position: int) -> tarfile.TarInfo | None:
        """Return the tar header at a position; None if it is missing or malformed."""
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
                # The writer's error is a better reason, so it is raised first.
                self._fetched.result()
                raise ArchiveError("it is truncated")
            check.feed(chunk)
            yield chunk
            begin += len(chunk)

    def _reaches(self, size: int) -> bool:
        """Wait until the file has that size or is complete. Return True if it has that size."""
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
def arriving(folder: Path, size: int, fetch: Callable[[Arrival], None]) -> Iterator[Arrival]:
    """Write a file without a name in a thread, and yield it. The thread ends with the block.

    The file is deleted at the end of the block: before the return if the block failed, else in the
    background.

    :param folder: directory for the file
    :param size: bytes for which room is reserved
    :param fetch: function that writes the file
    :raises NoRoomError: the budget is less
    """
    with room.Share(folder) as share, contextlib.ExitStack() as failed:
        share.reserve(size)
        # The kernel deletes a file without a name, even if nova-compute is killed.
        file = failed.enter_context(tempfile.TemporaryFile(dir=folder, prefix="novadocker-"))
        arrival = Arrival(file, share)
        with ThreadPoolExecutor(1) as threads:
            arrival._fetched = threads.submit(arrival._fetch, fetch)
            try:
                yield arrival
            finally:
                arrival._abandon()
        failed.pop_all()
    # A file system that discards freed blocks takes a second for gigabytes.
    threading.Thread(target=file.close, name="arrival").start()
