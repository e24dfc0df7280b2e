# SPDX-License-Identifier: Apache-2.0
"""Pieces of files, and compressed pieces unpacked into files without a name.

Unpacking is left to ``gzip`` and ``zstd``: Python has no zstd before 3.14, and a process of its
own can be held to a size by the kernel.
"""

import contextlib
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# the first bytes of a compressed file: the program that unpacks it
_PROGRAMS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_UNSUPPORTED = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}

_LONGEST_MAGIC = 6
# what the first name in a tar archive may begin with, and none of these
_NAME = re.compile(rb"[ -~]+\0*")

# larger ones cost more: memory for each is asked from the kernel and given back
CHUNK_BYTES = 256 << 10
_UNPACK_SECONDS = 900


class ArchiveError(Exception):
    """The archive can't be used; the text says why."""


class Content(Protocol):
    """Bytes that can be read again and again."""

    @property
    def size(self) -> int:
        """The number of bytes."""

    def chunks(self) -> Iterator[bytes]:
        """Return the bytes in small pieces."""


@dataclass(frozen=True)
class Region:
    """Consecutive bytes of an open file, read by position so that readers don't disturb others.

    :ivar descriptor: the open file's number
    :ivar offset: position of the first byte
    :ivar size: number of bytes
    """

    descriptor: int
    offset: int
    size: int

    def chunks(self) -> Iterator[bytes]:
        """Return the bytes in pieces of at most 256 KiB.

        :raises ArchiveError: the file ends before the region does
        """
        position, end = self.offset, self.offset + self.size
        while position < end:
            chunk = os.pread(self.descriptor, min(CHUNK_BYTES, end - position), position)
            if not chunk:
                raise ArchiveError("it is truncated")
            yield chunk
            position += len(chunk)

    def digest(self, algorithm: str = "sha256") -> str:
        """Return the digest of the bytes in hex.

        :raises ValueError: Python does not know the algorithm
        :raises ArchiveError: as ``chunks``
        """
        digest = hashlib.new(algorithm, usedforsecurity=False)
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.hexdigest()


class RegionFile(io.RawIOBase):
    """A region as a file that is read and searched."""

    def __init__(self, region: Region) -> None:
        super().__init__()
        self._region = region
        self._position = 0

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position, which may lie beyond the end."""
        if whence != io.SEEK_SET or position < 0:
            raise ArchiveError("a header leads out of it")
        self._position = position
        return position

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes, nothing at the end."""
        left = max(self._region.size - self._position, 0)
        size = left if size < 0 else min(size, left)
        found = os.pread(self._region.descriptor, size, self._region.offset + self._position)
        self._position += len(found)
        return found


class ChunkReader(io.RawIOBase):
    """Pieces as a file that is read once, from its start to its end.

    :ivar size: how many bytes were read
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__()
        self._chunks = chunks
        self._chunk = memoryview(b"")
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes, never more than 256 KiB, and nothing at the end."""
        while not self._chunk:
            following = next(self._chunks, None)
            if following is None:
                return b""
            self._chunk = memoryview(following)
        # each becomes a chunk of HTTP, and uWSGI before Glance refuses those of a MiB
        end = CHUNK_BYTES if size < 0 else min(size, CHUNK_BYTES)
        found, self._chunk = bytes(self._chunk[:end]), self._chunk[end:]
        self.size += len(found)
        return found


def is_plain(content: Region) -> bool:
    """Tell whether something begins as nothing does that an engine would take for compressed."""
    head = os.pread(content.descriptor, min(_LONGEST_MAGIC, content.size), content.offset)
    return bool(_NAME.fullmatch(head)) and not head.startswith(tuple(_UNSUPPORTED))


class Scratch(contextlib.ExitStack):
    """Files without a name in ``folder``, gone with the block or the process, limited together.

    All may hold half of what the folder's file system has free: the engine needs room as well.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._room = shutil.disk_usage(folder).free // 2

    def unpack(self, packed: Region, name: str) -> Region:
        """Return the plain bytes of a region that may be compressed with gzip or zstd.

        :param name: what the region is, for the reason of an error
        :raises ArchiveError: the region is damaged, is compressed otherwise, or has no room
        """
        head = os.pread(packed.descriptor, min(_LONGEST_MAGIC, packed.size), packed.offset)
        for magic, program in _UNSUPPORTED.items():
            if head.startswith(magic):
                raise ArchiveError(f"{name} is compressed with {program}; use gzip or zstd")
        for magic, program in _PROGRAMS.items():
            if head.startswith(magic):
                return self._unpack_with(program, packed, name)
        return packed

    def _unpack_with(self, program: str, packed: Region, name: str) -> Region:
        if shutil.which(program) is None:
            raise ArchiveError(
                f"{name} is compressed with {program}, which this host lacks: "
                f"install the package {program} on it"
            )
        target = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed with self)
        self.callback(target.close)
        with tempfile.TemporaryFile(dir=self._folder) as source:
            for chunk in packed.chunks():
                source.write(chunk)
            source.flush()
            os.lseek(source.fileno(), 0, os.SEEK_SET)
            try:
                done = subprocess.run(
                    ["prlimit", f"--fsize={self._room}", program, "--decompress", "--stdout"],
                    stdin=source,
                    stdout=target,
                    stderr=subprocess.PIPE,
                    timeout=_UNPACK_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise ArchiveError(f"{name} takes over {_UNPACK_SECONDS} s to unpack") from error
        if done.returncode == -signal.SIGXFSZ:
            raise ArchiveError(f"{name} unpacks to more than this host has room for")
        if done.returncode != 0:
            last = done.stderr.decode("ascii", "replace").strip().splitlines()[-1:]
            raise ArchiveError(f"{name} is damaged: {''.join(last)}")
        size = os.fstat(target.fileno()).st_size
        self._room -= size
        return Region(target.fileno(), 0, size)
