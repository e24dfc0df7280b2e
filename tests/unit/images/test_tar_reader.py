# SPDX-License-Identifier: Apache-2.0
"""The entries of tar archives: the same as tarfile's, and limits for hostile headers."""

import io
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from novadocker.virt.docker.images import squash, tar_check, tar_headers, tar_reader
from novadocker.virt.docker.images.regions import ArchiveError, Region
from tests import archives

END = bytes(1024)
FIELDS = (
    *("name", "linkname", "type", "size", "mode", "uid", "gid", "uname", "gname"),
    *("mtime", "offset_data", "devmajor", "devminor"),
)


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Callable[[bytes], Region]]:
    """Return a function that writes content into a file and returns it as a region."""
    descriptor = os.open(tmp_path / "content", os.O_RDWR | os.O_CREAT)

    def write(content: bytes) -> Region:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"begin" + content, 0)
        return Region(descriptor, 5, len(content))

    yield write
    os.close(descriptor)


def header(kind: bytes, content: bytes, name: str = "header") -> bytes:
    """Return an extended header."""
    found = tarfile.TarInfo(name)
    found.type, found.size = kind, len(content)
    return found.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def record(key: bytes, value: bytes) -> bytes:
    """Return a record of an extended header."""
    size = len(key) + len(value) + 3
    while len(b"%d" % size) + len(key) + len(value) + 3 != size:
        size = len(b"%d" % size) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (size, key, value)


FILE = archives.tar({"f": b"content"})

ENTRIES = [
    archives.entry("plain", b"content" * 99, mode=0o4755, uid=65534, mtime=1_700_000_000),
    archives.entry("a/" + "long name " * 30, b"x", uname="user", gname="group"),
    archives.entry("folder", type=tarfile.DIRTYPE),
    archives.entry("link", type=tarfile.SYMTYPE, linkname="../" * 60 + "target"),
    archives.entry("hard", type=tarfile.LNKTYPE, linkname="plain"),
    archives.entry("device", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    archives.entry("\u00fc\udcff", b"not in UTF-8"),
    archives.entry("large id", uid=1 << 31, gid=1 << 30),
]
LATER = [
    archives.entry("time", b"y", mtime=1_700_000_000.25),
    archives.entry("attributes", pax_headers={"SCHILY.xattr.user.a": "1\udcff\n=2"}),
]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_entries_are_those_of_tarfile(region: Callable[[bytes], Region], form: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, errors="surrogateescape") as archive:
        for entry, content in ENTRIES + (LATER if form == tarfile.PAX_FORMAT else []):
            archive.addfile(entry, io.BytesIO(content))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer, mode="r:", errors="surrogateescape") as archive:
        expected = archive.getmembers()
    found = list(tar_reader.entries(region(buffer.getvalue())))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert [getattr(one, name) for name in FIELDS] == [getattr(other, name) for name in FIELDS]
        assert one.pax_headers == other.pax_headers


def test_names_and_global_headers_are_read_as_by_the_engine(
    region: Callable[[bytes], Region],
) -> None:
    name, link = header(b"L", b"long\0", "././@LongLink"), header(b"K", b"target\0")
    records = header(b"x", record(b"path", b"path/") + record(b"uname", b""))
    (entry,) = tar_reader.entries(region(records + name + link + FILE))
    assert (entry.name, entry.linkname, entry.size) == ("long", "target", 7)
    (entry,) = tar_reader.entries(region(header(b"g", record(b"path", b"other")) + FILE))
    assert entry.name == "f"
    old = archives.tar_of([archives.entry("f", type=tarfile.AREGTYPE)])
    (entry,) = tar_reader.entries(region(records + old))
    assert (entry.name, entry.type) == ("path", tarfile.DIRTYPE)


@pytest.mark.parametrize("digits", [b"1" * 60_000, record(b"comment", b"1" * 60_000)])
@pytest.mark.parametrize("kind", [b"x", b"g"])
def test_many_digits_in_a_header_take_no_time(
    region: Callable[[bytes], Region], tmp_path: Path, kind: bytes, digits: bytes
) -> None:
    content = header(kind, digits) + FILE
    layer = region(content)
    readers: list[Callable[[int], object]] = [
        lambda _: tar_reader.Tar(layer),
        lambda file: squash.merge([layer], file),
        lambda _: tar_check.Check().feed(content),
    ]
    malformed = kind == b"x" and b"comment" not in digits
    started = time.process_time()
    with open(tmp_path / "merged", "w+b") as file:
        for read in readers:
            with pytest.raises(ArchiveError, match="malformed") if malformed else nullcontext():
                read(file.fileno())
    assert time.process_time() - started < 2


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_a_large_header_is_not_read(region: Callable[[bytes], Region], kind: bytes) -> None:
    content = header(kind, bytes(tar_headers.LARGEST + 1)) + FILE
    with pytest.raises(ArchiveError, match="more than 1048576 bytes"):
        tar_reader.Tar(region(content))
    with pytest.raises(ArchiveError, match="more than 1048576 bytes"):
        list(tar_reader.entries(region(content)))
    with pytest.raises(ArchiveError, match="more than 1048576 bytes"):
        tar_check.Check().feed(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header(b"x", record(b"size", b"-1")) + FILE, "malformed number '-1'"),
        (header(b"x", record(b"mtime", b"nan")) + FILE, "malformed number 'nan'"),
        (header(b"x", record(b"uid", b"9" * 5000)) + FILE, "malformed number '9"),
        (header(b"x", b"9" * 5000 + b" a=b\n") + FILE, "header is malformed"),
        (header(b"x", record(b"GNU.sparse.map", b"0,1")) + FILE, "sparse file"),
        (header(b"S", b"") + END, "sparse file"),
        (header(b"L", b"name") + END, "truncated"),
        (header(b"L", b"name")[:600], "truncated"),
        (FILE[:515], "truncated"),
    ],
)
def test_refused(region: Callable[[bytes], Region], content: bytes, reason: str) -> None:
    with pytest.raises(ArchiveError, match=reason):
        list(tar_reader.entries(region(content)))


def test_a_malformed_header_does_not_end_an_archive(region: Callable[[bytes], Region]) -> None:
    with pytest.raises(ArchiveError, match="it is damaged"):
        tar_reader.Tar(region(FILE[:1024] + b"x" * 512 + END))
