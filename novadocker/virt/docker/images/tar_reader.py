# SPDX-License-Identifier: Apache-2.0
"""Tar archives and JSON of untrusted origin, read within bounds of memory and time."""

import json
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from novadocker.virt.docker.images import tar_headers
from novadocker.virt.docker.images.regions import ArchiveError, Region

_MAX_HEADER_BYTES = 4 << 20
_MAX_LINKS = 8
_ZEROS = bytes(tarfile.BLOCKSIZE)
_INTEGER = re.compile(r"[0-9]{1,18}")
_TIME = re.compile(r"-?[0-9]{1,18}(\.[0-9]{0,18})?")


def parse(content: bytes, name: str) -> Any:
    """Return a JSON document.

    :param name: of the document, for the text of an error
    :raises ArchiveError: the document is malformed, or has a name twice in an object
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ArchiveError(f"its {name} has the same name twice in an object")
        return found

    try:
        return json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"its {name} is not JSON") from error


def get(found: Mapping[str, Any], key: str, kind: type, name: str) -> Any:
    """Return a member of an object; ArchiveError if it is missing or not of the type ``kind``."""
    if not isinstance(found.get(key), kind):
        raise ArchiveError(f"its {name} is malformed: {key} is missing or of another type")
    return found[key]


def get_all(found: Mapping[str, Any], key: str, kind: type, name: str) -> list[Any]:
    """Return a member that is a list of ``kind``; ArchiveError if it is missing or malformed."""
    values: list[Any] = get(found, key, list, name)
    if not all(isinstance(value, kind) for value in values):
        raise ArchiveError(f"its {name} is malformed: {key} has a member of another type")
    return values


@dataclass
class _Extended:
    """The extended headers that precede a file."""

    records: dict[bytes, bytes] = field(default_factory=dict)
    long_name: bytes = b""
    long_link: bytes = b""

    def add(self, kind: bytes, content: bytes) -> None:
        """Add an extended header. A later one of the same type replaces an earlier one."""
        if kind == tar_headers.RECORDS:
            self.records = tar_headers.read_records(content)
        elif kind == tar_headers.LONG_NAME:
            self.long_name = content.partition(b"\0")[0]
        elif kind == tar_headers.LONG_LINK:
            self.long_link = content.partition(b"\0")[0]

    def apply(self, entry: tarfile.TarInfo) -> None:
        """Replace the fields of a file's header, as the engine's parser does.

        :raises ArchiveError: a number is malformed
        """
        found = {_text(key): _text(value) for key, value in self.records.items()}
        entry.pax_headers = found
        name = _text(self.long_name) or found.get("path") or entry.name
        if entry.type == tarfile.AREGTYPE and name.endswith("/"):
            entry.type = tarfile.DIRTYPE
        entry.name = name.rstrip("/")
        entry.linkname = _text(self.long_link) or found.get("linkpath") or entry.linkname
        entry.uname = found.get("uname") or entry.uname
        entry.gname = found.get("gname") or entry.gname
        for key in ("size", "uid", "gid"):
            if value := found.get(key):
                setattr(entry, key, int(_number(_INTEGER, value)))
        if value := found.get("mtime"):
            entry.mtime = float(_number(_TIME, value))


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _number(pattern: re.Pattern[str], value: str) -> str:
    if not pattern.fullmatch(value):
        raise ArchiveError(f"an extended tar header has the malformed number {ascii(value)[:40]}")
    return value


def entries(content: Region, most: int | None = None) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of a tar archive, up to its end or its first block of zeros.

    The reader of ``tarfile`` is not used, because it reads extended headers of any size into
    memory, takes time that is quadratic in their size (CVE-2024-6232), and applies global headers,
    which the engine ignores.

    :param most: largest total size of the headers in bytes
    :raises tarfile.HeaderError: a header is malformed
    :raises ArchiveError: the archive is truncated, has a sparse file, or exceeds a limit
    """
    position = headers = 0
    extended = _Extended()
    while len(block := _read(content, position, tarfile.BLOCKSIZE)) == tarfile.BLOCKSIZE:
        if block == _ZEROS:
            break
        entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if entry.type == tar_headers.SPARSE:
            raise tar_headers.sparse_file()
        position += tarfile.BLOCKSIZE
        headers += tarfile.BLOCKSIZE
        if entry.type in tar_headers.EXTENDED:
            tar_headers.check_size(entry.size)
            headers += entry.size
            data = _read(content, position, entry.size)
            if len(data) < entry.size:
                raise ArchiveError("it is truncated")
            extended.add(entry.type, data)
            position += _padded(entry.size)
        else:
            extended.apply(entry)
            extended = _Extended()
            if entry.size < 0:
                raise ArchiveError("it has an entry of a negative size")
            entry.offset_data = position
            if entry.type not in tar_headers.WITHOUT_CONTENT:
                if position + entry.size > content.size:
                    raise ArchiveError("it is truncated")
                position += _padded(entry.size)
            yield entry
        if most is not None and headers > most:
            raise ArchiveError(f"its tar headers take more than {most} bytes")
    if extended != _Extended():
        raise ArchiveError("it is truncated")


def _read(content: Region, position: int, size: int) -> bytes:
    """Return bytes at a position of a region; fewer at the end of the region."""
    size = min(size, max(content.size - position, 0))
    return os.pread(content.descriptor, size, content.offset + position)


def _padded(size: int) -> int:
    return size + -size % tarfile.BLOCKSIZE


class Tar:
    """The files of a tar archive by name. The names are never used as paths of the host.

    :raises ArchiveError: the content is not a tar archive, is damaged, or has names that are
        ambiguous or point outside the archive
    """

    def __init__(self, content: Region) -> None:
        self._content = content
        self._members: dict[str, tarfile.TarInfo] = {}
        if content.size < tarfile.BLOCKSIZE:
            raise ArchiveError("it is not a tar archive: it is too short")
        try:
            for member in entries(content, _MAX_HEADER_BYTES):
                self._add(member)
        except tarfile.TarError as error:
            reason = "damaged" if self._members else "not a tar archive"
            raise ArchiveError(f"it is {reason}: {ascii(str(error))[:200]}") from error

    def __contains__(self, name: str) -> bool:
        """Return True if the archive has an entry of that name."""
        return name in self._members

    def read(self, name: str, limit: int) -> bytes:
        """Return a file's content; ArchiveError if it is larger than ``limit`` bytes."""
        found = self.region(name)
        if found.size > limit:
            raise ArchiveError(f"{ascii(name)[:80]} is larger than {limit} bytes")
        return b"".join(found.chunks())

    def region(self, name: str) -> Region:
        """Return the region of a file's content. Follows links within the archive.

        :raises ArchiveError: the file is missing or not a regular file
        """
        shown = ascii(name)[:80]
        target = posixpath.normpath(name)
        for _ in range(_MAX_LINKS):
            member = self._members.get(target)
            if member is None:
                raise ArchiveError(f"{shown} is missing; the archive may be truncated")
            if member.isreg():
                offset = self._content.offset + member.offset_data
                return Region(self._content.descriptor, offset, member.size)
            if not (member.issym() or member.islnk()):
                raise ArchiveError(f"{shown} is not a regular file")
            target = _link_target(member)
        raise ArchiveError(f"{shown} is a chain of more than {_MAX_LINKS} links")

    def _add(self, member: tarfile.TarInfo) -> None:
        shown = ascii(member.name)[:80]
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise ArchiveError(f"it has the forbidden entry {shown}")
        if member.issym() or member.islnk():
            target = _link_target(member)
            if target.startswith("/") or target.split("/")[0] == "..":
                raise ArchiveError(f"its entry {shown} links out of the archive")
        name = posixpath.normpath(member.name)
        if name in self._members and not (member.isdir() and self._members[name].isdir()):
            raise ArchiveError(f"it has the entry {shown} twice")
        self._members[name] = member


def _link_target(member: tarfile.TarInfo) -> str:
    # A symbolic link is relative to its directory, a hard link to the archive's root.
    folder = posixpath.dirname(member.name) if member.issym() else ""
    return posixpath.normpath(posixpath.join(folder, member.linkname))
