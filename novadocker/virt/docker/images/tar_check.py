# SPDX-License-Identifier: Apache-2.0
"""A check of layers in transit that refuses files that are larger than their data in the archive.

An engine writes the holes of a sparse file as zeros, as many as its header has: a layer of some KiB
could fill the disk of a host. This check must find the same headers as the engine's parser (Go's
``archive/tar``), so it also refuses an archive that parsers may read differently.
"""

import re

from novadocker.virt.docker.images import tar_headers
from novadocker.virt.docker.images.regions import ArchiveError

_BLOCK = 512
_ZEROS = bytes(_BLOCK)

# Fields of a header (tar(5)).
_NAME, _SIZE, _CHECKSUM, _TYPE = slice(100), slice(124, 136), slice(148, 156), slice(156, 157)
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_SIZE_RECORD = re.compile(rb"[0-9]{1,18}")

_OLD_FILE = b"\0"


class Check:
    """The check of one layer, which receives the layer chunk by chunk."""

    def __init__(self) -> None:
        self._skipped = 0
        self._wanted = _BLOCK
        self._block = bytearray()
        self._in_records = self._zeros = self._named = self._ended = False
        # Size of the next file by an extended header.
        self._size: int | None = None

    def feed(self, chunk: bytes) -> None:
        """Check the next chunk.

        :raises ArchiveError: the layer has a sparse file, or is malformed
        """
        view = memoryview(chunk)
        while view and not self._ended:
            if self._skipped:
                count = min(self._skipped, len(view))
                self._skipped -= count
            else:
                count = min(self._wanted - len(self._block), len(view))
                self._block += view[:count]
                if len(self._block) == self._wanted:
                    block, self._block = bytes(self._block), bytearray()
                    self._take(block)
            view = view[count:]

    def _take(self, block: bytes) -> None:
        if self._in_records:
            self._read_records(block)
            self._skipped = -self._wanted % _BLOCK
            self._wanted, self._in_records = _BLOCK, False
        elif block == _ZEROS:
            # Two blocks of zeros are the end of the archive.
            self._ended, self._zeros = self._zeros, True
        else:
            self._read_header(block)

    def _read_header(self, block: bytes) -> None:
        if self._zeros or not _is_sum_right(block):
            raise ArchiveError("a layer is damaged: a tar header is missing or malformed")
        size, kind = _number(block[_SIZE]), block[_TYPE]
        if kind == tar_headers.SPARSE:
            raise tar_headers.sparse_file()
        if kind in tar_headers.EXTENDED:
            tar_headers.check_size(size)
        if kind == tar_headers.RECORDS:
            if size == 0:
                raise ArchiveError("a layer has an empty extended tar header")
            self._size, self._wanted, self._in_records = None, size, True
            return
        if kind in tar_headers.EXTENDED:
            self._named = self._named or kind != tar_headers.GLOBAL_RECORDS
        else:
            size = size if self._size is None else self._size
            if kind == _OLD_FILE and size and (self._named or _name(block).endswith(b"/")):
                # The engine takes it for a directory and its content for the next header.
                raise ArchiveError("a layer has a directory with content")
            size = 0 if kind in tar_headers.WITHOUT_CONTENT else size
            self._size, self._named = None, False
        self._skipped = size + -size % _BLOCK

    def _read_records(self, content: bytes) -> None:
        self._named = True
        # The engine's parser ignores a record without a value.
        if value := tar_headers.read_records(content).get(b"size"):
            if not _SIZE_RECORD.fullmatch(value):
                raise ArchiveError("a layer has a file of a malformed size")
            self._size = int(value)


def _name(block: bytes) -> bytes:
    return block[_NAME].partition(b"\0")[0]


def _is_sum_right(block: bytes) -> bool:
    told = _OCTAL.fullmatch(block[_CHECKSUM])
    plain = sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ")
    # Some programs compute the checksum of signed bytes.
    signed = plain - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    return told is not None and bool(told[1]) and int(told[1], 8) in (plain, signed)


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    found = _OCTAL.fullmatch(field)
    if not found:
        raise ArchiveError("a layer has a file of a malformed size")
    return int(found[1] or b"0", 8)
