# SPDX-License-Identifier: Apache-2.0
"""Folders as a stream: everything that they hold, and later what changed since.

A stream is a sequence of lines of JSON, each of which a file's content may follow. Paths begin
with the number of the folder. Hard links, holes, owners, times, device nodes, attributes and the
marks of overlayfs for what was deleted are kept; sockets are not. The last line says that it is
complete.
"""

import base64
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from novadocker.linux.pipes import StreamError

# what tells that nothing of an entry has changed; None for one that may change unnoticed
Identity = tuple[int, int, int] | None

# overlayfs keeps its own state in them; of it only what hides the layers below goes along
_OVERLAY_ATTRIBUTE = "trusted.overlay."
_OPAQUE = "trusted.overlay.opaque"
_UNREADABLE = ("trusted.overlay.redirect", "trusted.overlay.metacopy")

# a change within the clock's tick after a look at it leaves no trace
_TRACELESS_NS = 2 * 10**9
_GONE_AT_ONCE = 1000
_CHUNK = 1 << 20
_LONGEST_LINE = 64 << 20


@dataclass(frozen=True)
class Entry:
    """One name in a folder.

    :ivar path: the folder's number, then the path in it
    :ivar mode: with the type, as in ``stat(2)``
    :ivar mtime: in nanoseconds
    :ivar link: the path of an earlier entry that this is another name of
    :ivar target: where a symbolic link leads
    :ivar pieces: where a file has data, from and to; the rest of it is holes
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


class Reader:
    """Writes folders to streams, the second time only what changed since the first.

    :param folders: in the order of their numbers
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = folders
        self._seen: dict[str, Identity] = {}

    def write(self, stream: IO[bytes], live: bool) -> int:
        """Write what is there now; return the bytes of content.

        :param live: whether what is read may change meanwhile. What does is not whole, and has to
            be written once more
        :raises OSError: something can't be read or written
        """
        seen: dict[str, Identity] = {}
        total = 0
        found = list(self._walk(live))
        present = {path for path, _, _ in found}
        gone = sorted(self._seen.keys() - present, reverse=True)
        for start in range(0, len(gone), _GONE_AT_ONCE):
            _write_line(stream, {"gone": gone[start : start + _GONE_AT_ONCE]})
        links: dict[tuple[int, int], str] = {}
        for path, place, status in found:
            first = path
            if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
                first = links.setdefault((status.st_dev, status.st_ino), path)
            identity = _identity(status)
            if identity is not None and self._seen.get(path) == identity:
                seen[path] = identity
                continue
            try:
                written, size = _write_entry(stream, path, place, first, live)
            except FileNotFoundError:
                if not live:
                    raise
                # another name of it, if there is one, becomes the first
                links = {key: name for key, name in links.items() if name != path}
                continue
            seen[path] = written
            total += size
        self._seen = seen
        _write_line(stream, {"end": len(found)})
        stream.flush()
        return total

    def _walk(self, live: bool) -> Iterator[tuple[str, Path, os.stat_result]]:
        for number, folder in enumerate(self._folders):
            pending = [(str(number), Path(folder))]
            while pending:
                path, place = pending.pop()
                try:
                    status = os.lstat(place)
                    if stat.S_ISSOCK(status.st_mode):
                        # nobody listens any more
                        continue
                    yield path, place, status
                    if stat.S_ISDIR(status.st_mode):
                        names = sorted(os.listdir(place), reverse=True)
                        pending += [(f"{path}/{name}", place / name) for name in names]
                except FileNotFoundError:
                    if not live:
                        raise


def _identity(status: os.stat_result) -> Identity:
    if status.st_ctime_ns > time.time_ns() - _TRACELESS_NS:
        return None
    return status.st_ino, status.st_ctime_ns, status.st_mode


def _write_entry(
    stream: IO[bytes], path: str, place: Path, first: str, live: bool
) -> tuple[Identity, int]:
    """Write one entry; return what tells of later changes, and the bytes of its content."""
    if not stat.S_ISREG(os.lstat(place).st_mode):
        status = os.lstat(place)
        target = os.readlink(place) if stat.S_ISLNK(status.st_mode) else ""
        link = "" if first == path else first
        _write_line(stream, _header(path, place, status, target=target, link=link))
        return _identity(status), 0
    source = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(source, "rb", buffering=0) as content:
        if live:
            # a mapped page that is dirty already can change without a trace
            os.fdatasync(source)
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(place)
        if first != path:
            _write_line(stream, _header(path, place, status, link=first))
            return _identity(status), 0
        pieces = list(_pieces(source, status.st_size))
        _write_line(stream, _header(path, place, status, size=status.st_size, pieces=pieces))
        for begin, end in pieces:
            _copy(content, stream, begin, end, live)
    return _identity(status), sum(end - begin for begin, end in pieces)


def _header(path: str, place: Path, status: os.stat_result, **more: Any) -> dict[str, Any]:
    return {
        "path": path,
        "mode": status.st_mode,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime": status.st_mtime_ns,
        "rdev": status.st_rdev,
        "attributes": _attributes(place),
        **more,
    }


def _attributes(place: Path) -> dict[str, str]:
    found = {}
    for name in os.listxattr(place, follow_symlinks=False):
        if name in _UNREADABLE:
            raise OSError(f"{place} has {name}, which only the host knows how to read")
        if name == _OPAQUE or not name.startswith(_OVERLAY_ATTRIBUTE):
            value = os.getxattr(place, name, follow_symlinks=False)
            found[name] = base64.b64encode(value).decode()
    return found


def _pieces(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield where a file has data."""
    end = 0
    # the rest is a hole, or the file has become shorter
    with suppress(OSError):
        while end < size:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
            end = min(os.lseek(descriptor, begin, os.SEEK_HOLE), size)
            if begin < end:
                yield begin, end


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
    """Applies streams to folders ``0``, ``1``, ... of a folder that nobody else writes to."""

    def __init__(self, folder: int) -> None:
        """Take the folder's descriptor."""
        self._top = folder
        self._times: list[tuple[str, int]] = []

    def apply(self, stream: IO[bytes]) -> None:
        """Apply one stream.

        :raises StreamError: it is not well-formed, or ends too early
        :raises OSError: something can't be written
        """
        while True:
            line = stream.readline(_LONGEST_LINE)
            if not line.endswith(b"\n"):
                raise StreamError("the stream ended too early")
            try:
                fields = json.loads(line)
                if "end" in fields:
                    break
                if "gone" in fields:
                    for path in fields["gone"]:
                        self._remove(path)
                    continue
                entry = Entry(**fields)
            except (ValueError, TypeError) as error:
                raise StreamError(f"not well-formed: {error}") from error
            self._make(entry, stream)
        # to write into a folder changes its time
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
                self._clear(parent, name)
            if entry.link:
                with self._named(entry.link) as (other, origin):
                    os.link(
                        origin, name, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False
                    )
                return
            if stat.S_ISREG(entry.mode):
                _fill(parent, name, entry, stream)
            elif stat.S_ISLNK(entry.mode):
                os.symlink(entry.target, name, dir_fd=parent)
            elif not stat.S_ISDIR(entry.mode):
                os.mknod(name, entry.mode, entry.rdev, dir_fd=parent)
            _dress(parent, name, entry)

    @staticmethod
    def _make_folder(parent: int, name: str) -> None:
        with suppress(FileNotFoundError):
            if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                return
            os.unlink(name, dir_fd=parent)
        os.mkdir(name, 0o700, dir_fd=parent)

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError, NotADirectoryError), self._named(path) as (parent, name):
            self._clear(parent, name)

    def _clear(self, parent: int, name: str) -> None:
        try:
            status = os.lstat(name, dir_fd=parent)
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=parent)
            return
        inner = os.open(name, _FOLDER, dir_fd=parent)
        try:
            for child in os.listdir(inner):
                self._clear(inner, child)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=parent)

    def _named(self, path: str) -> "_Place":
        return _Place(self._top, path)


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Place:
    """The folder that a path's last name is in, open, with no link followed on the way."""

    def __init__(self, top: int, path: str) -> None:
        self._names = path.split("/")
        if not self._names[0].isdecimal() or any(
            name in ("", ".", "..") or "\0" in name for name in self._names
        ):
            raise StreamError(f"{path!r} is no path")
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


def _fill(parent: int, name: str, entry: Entry, stream: IO[bytes]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, 0o600, dir_fd=parent), "wb", buffering=0) as file:
        file.truncate(entry.size)
        for begin, end in entry.pieces:
            file.seek(begin)
            while begin < end:
                chunk = stream.read(min(end - begin, _CHUNK))
                if not chunk:
                    raise StreamError("the stream ended too early")
                view = memoryview(chunk)
                while view:
                    view = view[file.write(view) :]
                begin += len(chunk)


def _dress(parent: int, name: str, entry: Entry) -> None:
    """Give an entry its owner, mode, attributes and time, in an order that keeps each."""
    place = f"/proc/self/fd/{parent}/{name}"
    os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
    if not stat.S_ISLNK(entry.mode):
        # it was made a moment ago, so it is no link
        os.chmod(place, stat.S_IMODE(entry.mode))
    # of a folder that was there already
    for key in os.listxattr(place, follow_symlinks=False):
        if key not in entry.attributes:
            os.removexattr(place, key, follow_symlinks=False)
    for key, value in entry.attributes.items():
        os.setxattr(place, key, base64.b64decode(value), follow_symlinks=False)
    os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)
