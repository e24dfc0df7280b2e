# SPDX-License-Identifier: Apache-2.0
"""Layers with files whose size exceeds their data in the archive."""

import io
import tarfile
from collections.abc import Sequence
from typing import Any

import pytest

from novadocker.virt.docker.images.regions import ArchiveError
from novadocker.virt.docker.images.tar_check import Check
from tests import archives

END = bytes(1024)
V1 = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1099511627776"}


def check(content: bytes, piece: int = 1 << 20) -> None:
    found = Check()
    for begin in range(0, len(content), piece):
        found.feed(content[begin : begin + piece])


def header(name: str = "f", size: int = 0, pax: dict[str, str] | None = None, **more: Any) -> bytes:
    entry = archives.entry(name, size=size, **more)[0]
    entry.pax_headers = pax or {}
    return entry.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)


def changed(block: bytes, at: int, data: bytes) -> bytes:
    """Return a header with other bytes and a valid checksum."""
    new = bytearray(block)
    new[at : at + len(data)] = data
    new[148:156] = b" " * 8
    new[148:156] = b"%06o\0 " % sum(new)
    return bytes(new)


SPARSE = header("zeros", 512, V1) + b"1\n1099511627776\n0\n".ljust(512, b"\0") + END


@pytest.mark.parametrize("piece", [1, 511, 512, 1 << 20])
def test_a_sparse_file(piece: int) -> None:
    with pytest.raises(ArchiveError, match="has a sparse file"):
        check(header("a", 3) + b"abc".ljust(512, b"\0") + SPARSE, piece)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header("f", pax={"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"}) + END, "a sparse file"),
        (header(type=b"S") + END, "a sparse file"),
        # An engine finds these headers; a parser that trusts the wrong size does not.
        (header("link", 512 + len(SPARSE), type=b"2", linkname="x") + SPARSE, "a sparse file"),
        (header("f", 1 << 20, {"size": "0", "comment": "x"}) + SPARSE, "a sparse file"),
        (header("f", type=b"g") + SPARSE, "a sparse file"),
        (header("folder/", 512, type=b"\0") + SPARSE, "a directory with content"),
        (header("f", pax={"path": "g/"}) + SPARSE, "a sparse file"),
        (
            header("f", pax={"path": "g/"})[:-512] + header("f", len(SPARSE), type=b"\0") + SPARSE,
            "a directory with content",
        ),
        (changed(header(), 124, b"\xff" * 12) + SPARSE, "malformed size"),
        (changed(header(), 124, b"+0000000001\0") + SPARSE, "malformed size"),
        (changed(header(), 124, b"0\x001        \0") + SPARSE, "malformed size"),
        (header("f", pax={"size": "-1"}) + END, "malformed size"),
        (header("f", pax={"size": "1_0"}) + END, "malformed size"),
        (header("f", 512, type=b"x") + b"x" * 512, "header is malformed"),
        (
            header("f", 512, type=b"x") + b"9999 a=b\n".ljust(512, b"\0"),
            "header is malformed",
        ),
        (
            header("f", 512, type=b"x") + b"4 a=b\n".ljust(512, b"\0"),
            "header is malformed",
        ),
        (header("f", 2 << 20, type=b"x") + END, "an extended tar header has more"),
        (bytes(512) + SPARSE, "header is missing or malformed"),
        (b"x" + header()[1:] + END, "header is missing or malformed"),
    ],
)
def test_refused(content: bytes, reason: str) -> None:
    with pytest.raises(ArchiveError, match=reason):
        check(content)


def tar_in(form: int, entries: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for found, content in entries:
            tar.addfile(found, io.BytesIO(content))
    return buffer.getvalue()


ENTRIES = [
    archives.entry("folder/", type=b"5", mode=0o755),
    archives.entry("folder/one", b"1" * 700, mtime=1.5),
    archives.entry("n" * 99, b"GNU.sparse.major"),
    archives.entry("link", type=b"2", linkname="folder"),
    archives.entry("empty"),
]


@pytest.mark.parametrize("piece", [1, 700, 1 << 20])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_others_write(form: int, piece: int) -> None:
    entries = list(ENTRIES)
    if form != tarfile.USTAR_FORMAT:
        entries.append(archives.entry("n" * 300 + "/caf\u00e9", b"3"))
    content = tar_in(form, entries)
    check(content, piece)
    # Data after the end marker is ignored.
    check(content + SPARSE, piece)
    # The error shows that the parser has reached the data behind it.
    with pytest.raises(ArchiveError, match="a sparse file"):
        check(
            content.rstrip(b"\0").ljust(-(-len(content.rstrip(b"\0")) // 512) * 512, b"\0") + SPARSE
        )


def test_an_old_file_and_a_large_one() -> None:
    check(header("f", 3, type=b"\0") + b"abc".ljust(512, b"\0") + END)
    found = Check()
    found.feed(header("f", 1 << 40))
    for _ in range(3):
        found.feed(bytes(1 << 20))
