# SPDX-License-Identifier: Apache-2.0
"""Regions of files, and the decompression of regions into files without a name.

The programs ``gzip``, ``zstd`` and ``xz`` decompress, because Python has no zstd before 3.14.
"""

import contextlib
import hashlib
import io
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from novadocker.linux import pipes
from novadocker.virt.docker.images import room


@dataclass(frozen=True)
class _Program:
    """A program that decompresses its standard input.

    :ivar package: the package that contains it
    """

    name: str
    package: str
    options: tuple[str, ...] = ()


# The programs by the first bytes of a compressed file. gzip and zstd limit their memory themselves;
# "xz -9" needs 65 MiB.
_PROGRAMS = {
    b"\x1f\x8b": _Program("gzip", "gzip"),
    b"\x28\xb5\x2f\xfd": _Program("zstd", "zstd"),
    b"\xfd7zXZ\x00": _Program(
        "xz", "xz-utils", ("--memlimit-decompress=128MiB", "--threads=1", "--no-adjust")
    ),
}
_UNSUPPORTED = {b"BZh": "bzip2"}

_LONGEST_MAGIC = 6
# A tar archive begins with a file name of such characters. No compressed file does.
_NAME = re.compile(rb"[ -~]+\0*")

# Larger chunks are slower, because the allocator maps and unmaps memory for each.
CHUNK_BYTES = 256 << 10
_UNPACK_SECONDS = 900
_SPLICED_BYTES = 1 << 20
_LONGEST_MESSAGE = 4096


class ArchiveError(Exception):
    """The archive can't be used. The text is the reason."""


class UnfitHostError(ArchiveError):
    """The archive can't be used on this host. The text is the reason."""


class Content(Protocol):
    """Bytes that can be read several times."""

    @property
    def size(self) -> int:
        """The number of bytes."""

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes in chunks."""


@dataclass(frozen=True)
class Region:
    """Consecutive bytes of an open file.

    They are read by position, so several readers can share the file descriptor.

    :ivar descriptor: file descriptor of the open file
    :ivar offset: position of the first byte
    :ivar size: number of bytes
    """

    descriptor: int
    offset: int
    size: int

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes in chunks of at most 256 KiB.

        :raises ArchiveError: the file ends before the region
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

        :raises ValueError: Python does not support the algorithm
        :raises ArchiveError: as ``chunks``
        """
        digest = hashlib.new(algorithm, usedforsecurity=False)
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.hexdigest()


class ChunkReader(io.RawIOBase):
    """Chunks as a file that can be read once, from its begin to its end.

    :ivar size: number of bytes read so far
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
    """Return True if the engine can't take the content for a compressed file."""
    head = os.pread(content.descriptor, min(_LONGEST_MAGIC, content.size), content.offset)
    return bool(_NAME.fullmatch(head)) and not head.startswith(tuple(_UNSUPPORTED))


class Scratch(contextlib.ExitStack):
    """Temporary files without a name in the directory ``folder``, within the budget of ``room``.

    The kernel deletes them at the end of the block or of the process.

    :param most: bytes of the flavor's root disk; 0 means no other bound than the budget
    :param share: how often plain bytes may fill the disk
    """

    def __init__(self, folder: Path, most: int = 0, share: int = 1) -> None:
        super().__init__()
        self._folder = folder
        self._most = most
        self._share_of_disk = share
        self._share = self.enter_context(room.Share(folder))

    def check_fits(self, size: int, name: str) -> None:
        """Check that plain bytes fit the flavor's root disk.

        :param name: of what has at least so many bytes, for the text of an error
        :raises ArchiveError: the disk has less
        """
        if self._most and size > self._share_of_disk * self._most:
            raise ArchiveError(
                f"{name} unpacks to {size} bytes or more, but the flavor's root disk has only "
                f"{self._most}"
            )

    def unpack(self, packed: Region, name: str, before: int = 0) -> Region:
        """Return a region's plain bytes. Decompresses a region in gzip, zstd or xz format.

        :param name: of the region, for the text of an error
        :param before: plain bytes that must fit the flavor's root disk together with the output
        :raises ArchiveError: the region is damaged, has another compression, or exceeds the limit
        """
        head = os.pread(packed.descriptor, min(_LONGEST_MAGIC, packed.size), packed.offset)
        for magic, unsupported in _UNSUPPORTED.items():
            if head.startswith(magic):
                raise ArchiveError(f"{name} is compressed with {unsupported}; use gzip, zstd or xz")
        for magic, program in _PROGRAMS.items():
            if head.startswith(magic):
                return self._unpack_with(program, packed, name, before)
        return packed

    def _unpack_with(self, program: _Program, packed: Region, name: str, before: int) -> Region:
        if shutil.which(program.name) is None:
            raise UnfitHostError(
                f"{name} is compressed with {program.name}, which this host lacks: "
                f"install the package {program.package} on it"
            )
        target = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed with self)
        self.callback(target.close)
        with (
            room.Share(self._folder) as copied,
            tempfile.TemporaryFile(dir=self._folder) as source,
            tempfile.TemporaryFile() as messages,
        ):
            try:
                copied.reserve(packed.size)
                for chunk in packed.chunks():
                    source.write(chunk)
                source.flush()
                os.lseek(source.fileno(), 0, os.SEEK_SET)
                copied.use(packed.size)
                code = self._decompress(
                    [program.name, "--decompress", "--stdout", *program.options],
                    source,
                    target,
                    messages,
                    lambda size: self.check_fits(before + size, name),
                )
            except room.NoRoomError as error:
                raise ArchiveError(f"{name} unpacks to more than this host has room for") from error
            except TimeoutError as error:
                raise ArchiveError(f"{name} takes over {_UNPACK_SECONDS} s to unpack") from error
            messages.seek(0)
            if code != 0:
                last = messages.read(_LONGEST_MESSAGE).decode("ascii", "replace").strip()
                raise ArchiveError(f"{name} is damaged: {''.join(last.splitlines()[-1:])}")
        return Region(target.fileno(), 0, os.fstat(target.fileno()).st_size)

    def _decompress(
        self,
        command: Sequence[str],
        source: IO[bytes],
        target: IO[bytes],
        messages: IO[bytes],
        check: Callable[[int], None],
    ) -> int:
        """Write the output of a program to a file; return the program's exit status.

        :param check: called with the size of the output so far
        :raises NoRoomError: the budget ends before the output
        :raises TimeoutError: the program takes too long
        """
        end, size = time.monotonic() + _UNPACK_SECONDS, 0
        with subprocess.Popen(
            command, stdin=source, stdout=subprocess.PIPE, stderr=messages
        ) as process:
            assert process.stdout
            try:
                output = process.stdout.fileno()
                while True:
                    pipes.await_data(output, end - time.monotonic())
                    # The output is counted after the write, so it may exceed the budget by this.
                    count = os.splice(output, target.fileno(), _SPLICED_BYTES)
                    if not count:
                        return process.wait(max(end - time.monotonic(), 0))
                    self._share.use(count)
                    size += count
                    check(size)
            except subprocess.TimeoutExpired as error:
                raise TimeoutError from error
            finally:
                process.kill()
