# SPDX-License-Identifier: Apache-2.0
"""Layers whose files are larger than what the archive has of them: refused while they pass.

Engines write the holes of a sparse file as zeros, as many as its header says: a layer of some KiB
would fill the disk of a host. What an engine finds in an archive (Go's ``archive/tar``) must be
found here, so an archive that could be read in two ways is refused, too.
"""

import re

from novadocker.virt.docker.images.regions import ArchiveError

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_LARGEST_RECORDS = 1 << 20

# of a header: tar(5)
_NAME, _SIZE, _CHECKSUM, _TYPE = slice(100), slice(124, 136), slice(148, 156), slice(156, 157)
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_RECORD = re.compile(rb"(0|[1-9][0-9]*) ([^=]+)=")
_SIZE_RECORD = re.compile(rb"[0-9]{1,18}")

_WITHOUT_CONTENT = frozenset(b"123456")
_RECORDS, _GLOBAL_RECORDS, _LONG_NAMES, _SPARSE, _OLD_FILE = b"x", b"g", (b"K", b"L"), b"S", b"\0"


class Check:
    """Looks at a layer as it passes, piece by piece."""

    def __init__(self) -> None:
        self._skipped = 0
        self._wanted = _BLOCK
        self._block = bytearray()
        self._in_records = self._zeros = self._named = self._ended = False
        # of the next file, as records say
        self._size: int | None = None

    def feed(self, chunk: bytes) -> None:
        """Look at the next piece.

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
            # two of them are the end
            self._ended, self._zeros = self._zeros, True
        else:
            self._read_header(block)

    def _read_header(self, block: bytes) -> None:
        if self._zeros or not _is_sum_right(block):
            raise ArchiveError("a layer is damaged: it has no header where one must be")
        size, kind = _number(block[_SIZE]), block[_TYPE]
        if kind == _SPARSE:
            raise _sparse()
        if kind == _RECORDS:
            if not 0 < size <= _LARGEST_RECORDS:
                raise ArchiveError("a layer has records of a size that is not supported")
            self._size, self._wanted, self._in_records = None, size, True
            return
        if kind == _GLOBAL_RECORDS or kind in _LONG_NAMES:
            self._named = self._named or kind in _LONG_NAMES
        else:
            size = size if self._size is None else self._size
            if kind == _OLD_FILE and size and (self._named or _name(block).endswith(b"/")):
                # a folder to engines, whose content would be the next header
                raise ArchiveError("a layer has a folder with content")
            size = 0 if kind[0] in _WITHOUT_CONTENT else size
            self._size, self._named = None, False
        self._skipped = size + -size % _BLOCK

    def _read_records(self, content: bytes) -> None:
        self._named = True
        position = 0
        while position < len(content):
            found = _RECORD.match(content, position)
            end = position + int(found[1]) if found else 0
            if not found or not found.end() < end <= len(content) or content[end - 1] != ord("\n"):
                raise ArchiveError("a layer has malformed records")
            value = content[found.end() : end - 1]
            if found[2].startswith(b"GNU.sparse."):
                raise _sparse()
            if found[2] == b"size" and value:
                if not _SIZE_RECORD.fullmatch(value):
                    raise ArchiveError("a layer has a file of a malformed size")
                self._size = int(value)
            position = end


def _sparse() -> ArchiveError:
    return ArchiveError(
        "a layer has a sparse file, which may be larger than the layer: write it without holes"
    )


def _name(block: bytes) -> bytes:
    return block[_NAME].partition(b"\0")[0]


def _is_sum_right(block: bytes) -> bool:
    told = _OCTAL.fullmatch(block[_CHECKSUM])
    plain = sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ")
    # some have summed up signed bytes
    signed = plain - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    return told is not None and bool(told[1]) and int(told[1], 8) in (plain, signed)


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    found = _OCTAL.fullmatch(field)
    if not found:
        raise ArchiveError("a layer has a file of a malformed size")
    return int(found[1] or b"0", 8)
