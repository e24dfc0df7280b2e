# SPDX-License-Identifier: Apache-2.0
"""Tar archives and JSON of untrusted origin, read within bounds of memory and time."""

import io
import json
import os
import posixpath
import tarfile
from collections.abc import Mapping
from typing import Any

from novadocker.virt.docker.images.regions import ArchiveError, Region

_MAX_HEADER_BYTES = 4 << 20
_MAX_LINKS = 8


def parse(content: bytes, name: str) -> Any:
    """Return a JSON document.

    :param name: what the document is, for the reason of an error
    :raises ArchiveError: it is malformed or has a name twice in an object
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ArchiveError(f"its {name} has the same name twice in an object")
        return found

    try:
        return json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"its {name} is no JSON") from error


def get(found: Mapping[str, Any], key: str, kind: type, name: str) -> Any:
    """Return a member of an object; ArchiveError if it is absent or not of the type ``kind``."""
    if not isinstance(found.get(key), kind):
        raise ArchiveError(f"its {name} is malformed: {key} is missing or of another type")
    return found[key]


def get_all(found: Mapping[str, Any], key: str, kind: type, name: str) -> list[Any]:
    """Return a member that is a list of ``kind``; ArchiveError if it is anything else."""
    values: list[Any] = get(found, key, list, name)
    if not all(isinstance(value, kind) for value in values):
        raise ArchiveError(f"its {name} is malformed: {key} has a member of another type")
    return values


class _HeaderReader(io.RawIOBase):
    """The file that ``tarfile`` finds headers in; ends a search that reads too much.

    The limit also ends headers that claim a huge size and loops over malformed ones.
    """

    def __init__(self, region: Region) -> None:
        super().__init__()
        self._region = region
        self._position = 0
        self._left = _MAX_HEADER_BYTES

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or position < 0:
            raise tarfile.ReadError("a header leads out of the archive")
        self._position = position
        return position

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._left:
            raise ArchiveError(f"its tar headers take more than {_MAX_HEADER_BYTES} bytes")
        self._left -= size
        size = min(size, max(self._region.size - self._position, 0))
        found = os.pread(self._region.descriptor, size, self._region.offset + self._position)
        self._position += len(found)
        return found


class Tar:
    """The files of a tar archive by name; nothing is ever written under a name out of it.

    :raises ArchiveError: it is no tar archive, is damaged, or has names that lead out of it or
        are ambiguous
    """

    def __init__(self, content: Region) -> None:
        self._content = content
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            with tarfile.open(fileobj=_HeaderReader(content), mode="r:") as opened:
                for member in opened:
                    self._add(member)
        except (tarfile.TarError, ValueError, OverflowError) as error:
            reason = "damaged" if self._members else "no tar archive"
            raise ArchiveError(f"it is {reason}: {ascii(str(error))[:200]}") from error

    def __contains__(self, name: str) -> bool:
        """Tell whether there is an entry of that name."""
        return name in self._members

    def read(self, name: str, limit: int) -> bytes:
        """Return a file's content; ArchiveError if it has more than ``limit`` bytes."""
        found = self.region(name)
        if found.size > limit:
            raise ArchiveError(f"{ascii(name)[:80]} is larger than {limit} bytes")
        return b"".join(found.chunks())

    def region(self, name: str) -> Region:
        """Return where a file's content is; links inside the archive are followed."""
        shown = ascii(name)[:80]
        target = posixpath.normpath(name)
        for _ in range(_MAX_LINKS):
            member = self._members.get(target)
            if member is None:
                raise ArchiveError(f"{shown} is missing; the archive may be truncated")
            if member.isreg() and not member.issparse():
                offset = self._content.offset + member.offset_data
                return Region(self._content.descriptor, offset, member.size)
            if not (member.issym() or member.islnk()):
                raise ArchiveError(f"{shown} is no regular file")
            target = _link_target(member)
        raise ArchiveError(f"{shown} is a chain of more than {_MAX_LINKS} links")

    def _add(self, member: tarfile.TarInfo) -> None:
        shown = ascii(member.name)[:80]
        if member.name.startswith("/") or ".." in member.name.split("/") or member.size < 0:
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
    # a symbolic link starts at its own folder, a hard link at the archive's root
    folder = posixpath.dirname(member.name) if member.issym() else ""
    return posixpath.normpath(posixpath.join(folder, member.linkname))
