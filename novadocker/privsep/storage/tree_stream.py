# SPDX-License-Identifier: Apache-2.0
"""Directories as a stream: their whole content, and later the changes since.

A stream is a sequence of JSON objects, each on a line of its own; the content of a file may follow
a line. Paths begin with the number of the directory. The stream has hard links, holes, owners,
times, device nodes, extended attributes, and overlayfs's marks of deleted names; it has no sockets.
Its last line shows that it is complete.
"""

import base64
import errno
import json
import os
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from novadocker.linux import openat, walk
from novadocker.linux.pipes import StreamError
from novadocker.privsep import arguments
from novadocker.privsep.storage import callers, sparse_files
from novadocker.privsep.storage.allowance import Allowance

# Is equal as long as an entry does not change; None for an entry that may change unnoticed.
Identity = tuple[int, int, int] | None

# Prefix of the extended attributes with the state of overlayfs. The stream has only the one that
# hides the layers below a directory.
_OVERLAY_ATTRIBUTE = "trusted.overlay."
_OPAQUE = "trusted.overlay.opaque"
_UNREADABLE = ("trusted.overlay.redirect", "trusted.overlay.metacopy")

# A change within the clock's tick after the entry was read does not change its ctime.
_TRACELESS_NS = 2 * 10**9
_GONE_AT_ONCE = 1000
_CHUNK = 1 << 20
_LONGEST_LINE = 64 << 20


@dataclass(frozen=True)
class Entry:
    """One name in a directory.

    :ivar path: number of the directory, then the path in it
    :ivar mode: with the type, as in ``stat(2)``
    :ivar mtime: in nanoseconds
    :ivar link: path of an earlier entry of the same file; empty for the file's first name
    :ivar target: target of a symbolic link
    :ivar pieces: begin and end of each range of a file with data; the rest of the file is holes
    :ivar attributes: extended attributes, in Base64
    """

    path: str
    mode: int
    uid: int
    gid: int
    mtime: int
    rdev: int = 0
    link: str = ""
    target: str = ""
    size: int = 0
    pieces: Sequence[Sequence[int]] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)

    def extra_bytes(self) -> int:
        """Return the bytes of the attributes and of a link's target."""
        return len(self.target) + sum(map(len, self.attributes.values()))

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> "Entry":
        """Return the entry of a line.

        :raises ValueError: a field is malformed
        :raises TypeError: a field is missing or unknown
        """
        entry = cls(**fields)
        for name, allowed in _NUMBERS.items():
            arguments.number(allowed, getattr(entry, name))
        for text in (entry.path, entry.link, entry.target, *arguments.mapping(entry.attributes)):
            _check_text(text)
        if "/" not in entry.path and not stat.S_ISDIR(entry.mode):
            raise ValueError(f"{entry.path!r} is not a directory")
        place = 0
        for piece in arguments.items(entry.pieces):
            begin, end = arguments.items(piece)
            if not place <= arguments.number(_SIZES, begin) <= arguments.number(_SIZES, end):
                raise ValueError("ranges of data are not in order")
            place = end
        if place > entry.size:
            raise ValueError("the file is smaller than its data")
        for key, value in entry.attributes.items():
            base64.b64decode(value, validate=True)
            if key != _OPAQUE and key.startswith(_OVERLAY_ATTRIBUTE):
                raise ValueError(f"attribute {key!r} is not allowed")
        return entry


_SIZES = range(1 << 63)
_NUMBERS = {
    "mode": range(1 << 16),
    "uid": arguments.IDS,
    "gid": arguments.IDS,
    "mtime": range(-(1 << 63), 1 << 63),
    "rdev": range(1 << 64),
    "size": _SIZES,
}


# Twice PATH_MAX. A tenant can nest directories deeper, which programs hardly do.
_LONGEST_PATH = 8192


def _check_text(value: object) -> None:
    if not isinstance(value, str) or len(value) > _LONGEST_PATH or "\0" in value:
        raise ValueError("a name is not a text, too long, or has a NUL character")
    # Raises UnicodeEncodeError, a ValueError, if no file can have the name.
    os.fsencode(value)


class Reader:
    """Writes directories to streams: first their whole content, then the changes since.

    A tenant may change the directories meanwhile. What is sent under a name is the file that the
    walk found there; a name whose file vanished or was replaced is sent by the next stream.

    :param folders: in the order of their numbers
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = folders
        # What the destination has: the names in each directory, by its path.
        self._seen: dict[str, dict[str, Identity]] = {}

    def write(self, stream: IO[bytes], live: bool) -> int:
        """Write a stream; return the bytes of content.

        :param live: whether the directories may change meanwhile. A file that does is not
            consistent in the stream, and must be written again
        :raises OSError: a file cannot be read, or the stream not be written
        """
        changes = _Changes(stream, live, self._seen)
        for number, folder in enumerate(self._folders):
            with callers.opened(folder) as top:
                changes.write(str(number), top)
        self._seen = changes.seen
        _write_line(stream, {"end": changes.count})
        stream.flush()
        return changes.total


class _Changes:
    """One stream of a reader.

    :param before: what the destination has
    :ivar seen: what it has after the stream
    """

    def __init__(
        self, stream: IO[bytes], live: bool, before: Mapping[str, Mapping[str, Identity]]
    ) -> None:
        self._stream = stream
        self._live = live
        self._before = before
        # The first path that was sent of each file, by device and inode.
        self._links: dict[tuple[int, int], str] = {}
        self.seen: dict[str, dict[str, Identity]] = {}
        self.count = 0
        self.total = 0

    def write(self, number: str, top: int) -> None:
        """Write a directory.

        :param number: of the directory, with which the paths begin
        :param top: its descriptor
        """
        for found in walk.Walk(top, tolerate=self._is_change):
            path = f"{number}/{found.path}" if found.path else number
            # Otherwise the destination would refuse it.
            if len(path) > _LONGEST_PATH:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path[:200])
            self._write_found(found, path)

    def _is_change(self, error: OSError) -> bool:
        return self._live and openat.shows_change(error)

    def _write_found(self, found: walk.Found, path: str) -> None:
        folder, _, name = path.rpartition("/")
        before = self._before.get(folder, {})
        gone = self._before.get(path, {}).keys() - set(found.names)
        self._write_gone(f"{path}/{child}" for child in sorted(gone))
        # A socket is useless without the process that listens on it.
        if found.status is not None and not stat.S_ISSOCK(found.status.st_mode):
            try:
                identity = self._write_entry(found, found.status, path, before.get(name))
            except OSError as error:
                if not self._is_change(error):
                    raise
            else:
                self.seen.setdefault(folder, {})[name] = identity
                self.count += 1
                return
        # The destination must have no file of which the reader has no record.
        if name in before:
            self._write_gone([path])

    def _write_entry(
        self, found: walk.Found, status: os.stat_result, path: str, before: Identity
    ) -> Identity:
        """Write an entry unless the destination has it; return its identity."""
        if before is not None and _identity(status) == before:
            self._first(status, path)
            return before
        with found.held() as file:
            if stat.S_ISREG(file.status.st_mode):
                return self._write_regular(file, path)
            target = file.target() if stat.S_ISLNK(file.status.st_mode) else ""
            link = self._first(file.status, path)
            self._write_header(path, file.status, file.attributes(), target=target, link=link)
            return _identity(file.status)

    def _write_regular(self, file: openat.Held, path: str) -> Identity:
        with file.opened() as descriptor, open(descriptor, "rb", 0, closefd=False) as content:
            if self._live:
                # A change of a mapped page that is dirty already does not change the ctime.
                os.fdatasync(descriptor)
            status, attributes = os.fstat(descriptor), file.attributes()
            if link := self._first(status, path):
                self._write_header(path, status, attributes, link=link)
                return _identity(status)
            size = status.st_size
            pieces = list(sparse_files.data_ranges(descriptor, size))
            self._write_header(path, status, attributes, size=size, pieces=pieces)
            for begin, end in pieces:
                _copy(content, self._stream, begin, end, self._live)
        self.total += sum(end - begin for begin, end in pieces)
        return _identity(status)

    def _first(self, status: os.stat_result, path: str) -> str:
        """Return the path of an earlier entry of the same file; empty if this is the first."""
        if stat.S_ISDIR(status.st_mode) or status.st_nlink < 2:
            return ""
        first = self._links.setdefault((status.st_dev, status.st_ino), path)
        return "" if first == path else first

    def _write_gone(self, paths: Iterable[str]) -> None:
        gone = list(paths)
        for start in range(0, len(gone), _GONE_AT_ONCE):
            _write_line(self._stream, {"gone": gone[start : start + _GONE_AT_ONCE]})

    def _write_header(
        self, path: str, status: os.stat_result, attributes: Mapping[str, bytes], **more: Any
    ) -> None:
        fields = {
            "path": path,
            "mode": status.st_mode,
            "uid": status.st_uid,
            "gid": status.st_gid,
            "mtime": status.st_mtime_ns,
            "rdev": status.st_rdev,
            "attributes": _sent(path, attributes),
            **more,
        }
        _write_line(self._stream, fields)


def _identity(status: os.stat_result) -> Identity:
    if status.st_ctime_ns > time.time_ns() - _TRACELESS_NS:
        return None
    return status.st_ino, status.st_ctime_ns, status.st_mode


def _sent(path: str, attributes: Mapping[str, bytes]) -> dict[str, str]:
    """Return the extended attributes that the stream has, in Base64."""
    for name in _UNREADABLE:
        if name in attributes:
            raise OSError(f"{path} has the attribute {name}, which is valid only on its host")
    return {
        name: base64.b64encode(value).decode()
        for name, value in attributes.items()
        if name == _OPAQUE or not name.startswith(_OVERLAY_ATTRIBUTE)
    }


def _copy(source: IO[bytes], stream: IO[bytes], begin: int, end: int, live: bool) -> None:
    source.seek(begin)
    left = end - begin
    while left:
        chunk = source.read(min(left, _CHUNK))
        if not chunk:
            if not live:
                raise OSError("a file became shorter while it was read")
            chunk = bytes(min(left, _CHUNK))
        stream.write(chunk)
        left -= len(chunk)


def _write_line(stream: IO[bytes], fields: Mapping[str, Any]) -> None:
    stream.write(json.dumps(fields).encode() + b"\n")


class Writer:
    """Applies streams to the subdirectories ``0``, ``1``, ... of a directory.

    :param folder: file descriptor of the directory, which no other process writes to
    :param allowance: of the directory
    """

    def __init__(self, folder: int, allowance: Allowance) -> None:
        self._top = folder
        self._allowance = allowance
        self._times: list[tuple[str, int]] = []

    def apply(self, stream: IO[bytes]) -> None:
        """Apply one stream.

        :raises StreamError: the stream is malformed, ends too early, or has more data than allowed
        :raises OSError: a file cannot be written
        """
        while True:
            line = stream.readline(_LONGEST_LINE)
            if not line.endswith(b"\n"):
                raise StreamError("the stream ended too early")
            try:
                fields = arguments.mapping(json.loads(line))
                if "end" in fields:
                    break
                if "gone" in fields:
                    for path in arguments.items(fields["gone"]):
                        _check_text(path)
                        self._remove(path)
                    continue
                entry = Entry.parse(fields)
            except (ValueError, TypeError, RecursionError) as error:
                raise StreamError(f"the stream is malformed: {str(error)[:200]}") from error
            is_folder = stat.S_ISDIR(entry.mode)
            self._allowance.take_entry(self._top, entry.extra_bytes(), is_folder)
            self._make(entry, stream)
        # Because a write into a directory changes its time.
        for path, mtime in reversed(self._times):
            with suppress(FileNotFoundError), self._named(path) as (parent, name):
                os.utime(name, ns=(mtime, mtime), dir_fd=parent, follow_symlinks=False)
        self._times.clear()

    def _make(self, entry: Entry, stream: IO[bytes]) -> None:
        with self._named(entry.path) as (parent, name):
            if stat.S_ISDIR(entry.mode):
                self._make_folder(parent, name)
                self._times.append((entry.path, entry.mtime))
            else:
                walk.remove(parent, name)
            if entry.link:
                with self._named(entry.link) as (other, origin):
                    os.link(
                        origin, name, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False
                    )
                return
            if stat.S_ISREG(entry.mode):
                self._fill(parent, name, entry, stream)
            elif stat.S_ISLNK(entry.mode):
                os.symlink(entry.target, name, dir_fd=parent)
            elif not stat.S_ISDIR(entry.mode):
                os.mknod(name, entry.mode, entry.rdev, dir_fd=parent)
            _dress(parent, name, entry)

    def _fill(self, parent: int, name: str, entry: Entry, stream: IO[bytes]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, 0o600, dir_fd=parent), "wb", buffering=0) as file:
            file.truncate(entry.size)
            for begin, end in entry.pieces:
                file.seek(begin)
                while begin < end:
                    chunk = stream.read(min(end - begin, _CHUNK))
                    if not chunk:
                        raise StreamError("the stream ended too early")
                    self._allowance.take(self._top, begin, begin + len(chunk))
                    view = memoryview(chunk)
                    while view:
                        view = view[file.write(view) :]
                    begin += len(chunk)

    @staticmethod
    def _make_folder(parent: int, name: str) -> None:
        with suppress(FileNotFoundError):
            if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                return
            os.unlink(name, dir_fd=parent)
        os.mkdir(name, 0o700, dir_fd=parent)

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError, NotADirectoryError), self._named(path) as (parent, name):
            walk.remove(parent, name)

    def _named(self, path: str) -> "_Place":
        return _Place(self._top, path)


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Place:
    """The parent directory of a path, opened without following symbolic links."""

    def __init__(self, top: int, path: str) -> None:
        self._names = path.split("/")
        if not self._names[0].isdecimal() or any(
            name in ("", ".", "..") or "\0" in name for name in self._names
        ):
            raise StreamError(f"{path!r} is not a path in the stream")
        self._top = top

    def __enter__(self) -> tuple[int, str]:
        self._folder = os.dup(self._top)
        try:
            for name in self._names[:-1]:
                inner = os.open(name, _FOLDER, dir_fd=self._folder)
                os.close(self._folder)
                self._folder = inner
        except OSError:
            os.close(self._folder)
            raise
        return self._folder, self._names[-1]

    def __exit__(self, *_: object) -> None:
        os.close(self._folder)


def _dress(parent: int, name: str, entry: Entry) -> None:
    """Set an entry's owner, mode, extended attributes and time, in an order that keeps each."""
    place = f"/proc/self/fd/{parent}/{name}"
    os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
    if not stat.S_ISLNK(entry.mode):
        # The entry was created just now, so it is not a link.
        os.chmod(place, stat.S_IMODE(entry.mode))
    # A directory that existed before may have other attributes.
    for key in os.listxattr(place, follow_symlinks=False):
        if key not in entry.attributes:
            os.removexattr(place, key, follow_symlinks=False)
    for key, value in entry.attributes.items():
        os.setxattr(place, key, base64.b64decode(value), follow_symlinks=False)
    os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)
