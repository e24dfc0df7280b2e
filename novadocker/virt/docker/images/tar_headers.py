# SPDX-License-Identifier: Apache-2.0
"""Extended headers of tar archives of untrusted origin, read within bounds of memory and time.

An extended header precedes a file and replaces fields of its header: records of pax(1), or a long
name of GNU tar.
"""

import re

from novadocker.virt.docker.images.regions import ArchiveError

RECORDS, GLOBAL_RECORDS, LONG_LINK, LONG_NAME = b"x", b"g", b"K", b"L"
EXTENDED = frozenset({RECORDS, GLOBAL_RECORDS, LONG_LINK, LONG_NAME})
"""Types of extended headers."""

SPARSE = b"S"
"""Type of a sparse file of GNU tar."""

WITHOUT_CONTENT = frozenset(bytes([kind]) for kind in b"123456")
"""Types of files that have no content, whatever their header has as size."""

LARGEST = 1 << 20
"""Largest size of an extended header, as in the engine's parser (Go's archive/tar)."""

_RECORD = re.compile(rb"([1-9][0-9]{0,7}) ([^=]+)=")


def check_size(size: int) -> None:
    """Raise ArchiveError if an extended header is larger than ``LARGEST``."""
    if not 0 <= size <= LARGEST:
        raise ArchiveError(f"an extended tar header has more than {LARGEST} bytes")


def read_records(content: bytes) -> dict[bytes, bytes]:
    """Return the records of an extended header by their keys.

    :raises ArchiveError: a record is malformed, or is one of a sparse file
    """
    found: dict[bytes, bytes] = {}
    position = 0
    while position < len(content):
        match = _RECORD.match(content, position)
        end = position + int(match[1]) if match else 0
        if not match or not match.end() < end <= len(content) or content[end - 1] != ord("\n"):
            raise ArchiveError("an extended tar header is malformed")
        if match[2].startswith(b"GNU.sparse."):
            raise sparse_file()
        found[match[2]] = content[match.end() : end - 1]
        position = end
    return found


def sparse_file() -> ArchiveError:
    """Return the error of an archive with a sparse file."""
    return ArchiveError(
        "a layer has a sparse file, which may be larger than the layer: write it without holes"
    )
