# SPDX-License-Identifier: Apache-2.0
"""Walks of directories that a tenant may change meanwhile.

A walk goes from descriptor to descriptor. So it stays below its top whatever a name becomes, and a
file that was looked at is the file that is opened. It takes a bounded number of descriptors and no
recursion, however deep the directories are.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from novadocker.linux import openat

# Descriptors of directories that a walk keeps open; beyond, the highest directory is closed, and
# opened again when the walk comes back to it.
_MOST_OPEN = 64
# Bytes of a path in one call. PATH_MAX is 4096, and a name has up to 255 bytes.
_LONGEST_PART = 3800
# A path longer than that is refused, because each name below it costs the time to copy it.
_LONGEST_PATH = 1 << 16

_FOLDER = os.O_RDONLY | os.O_DIRECTORY


@dataclass(frozen=True)
class Found:
    """A name that a walk found. It is valid until the walk goes on.

    :ivar path: relative to the top; empty for the top itself
    :ivar directory: descriptor of the directory with the name
    :ivar status: None if the file can't be read
    :ivar names: names in a directory
    :ivar descriptor: of a directory; -1 for any other file
    :ivar left: True if all below the directory was found before
    :ivar error: the reason why the file can't be read
    :ivar mounts: whether the file may be another mount
    """

    path: str
    directory: int
    name: str
    status: os.stat_result | None
    names: Sequence[str] = ()
    descriptor: int = -1
    left: bool = False
    error: OSError | None = None
    mounts: bool = False

    @contextmanager
    def held(self) -> Iterator[openat.Held]:
        """Hold the file that the walk found.

        :raises ChangedError: the name has another file meanwhile
        :raises OSError: the name has no file meanwhile, or can't be opened
        """
        if self.error:
            # A new exception, because the traceback of one that is raised again and again grows.
            raise OSError(self.error.errno, self.error.strerror, self.path) from self.error
        assert self.status
        if self.descriptor >= 0:
            yield openat.Held(self.descriptor, self.status)
            return
        with openat.held(self.directory, self.name, self.mounts) as file:
            if _key(file.status) != _key(self.status):
                raise openat.ChangedError(self.path)
            yield file


@dataclass
class _Level:
    """A directory on the way to the place of the walk.

    :ivar pending: names that the walk has not reached yet, in reverse order
    :ivar descriptor: -1 while the directory is closed
    :ivar lost: the reason why the directory can't be opened again
    """

    name: str
    status: os.stat_result
    pending: list[str]
    descriptor: int
    lost: OSError | None = None


class Walk:
    """Iterator over a directory and all below it, in the order of the names.

    A directory comes before its content. The walk follows no link.

    :param top: descriptor of the directory, opened for reading
    :param tolerate: returns True for an error after which the walk goes on. What it can't read then
        comes with the error. The walk raises any other error
    :param skip: returns True for the relative path of a file that the walk leaves out
    :param leaving: whether a directory comes also after its content, as ``left``
    :param mounts: whether the walk enters other mounts; otherwise one is an error (EXDEV)
    :raises OSError: a file can't be read
    """

    def __init__(
        self,
        top: int,
        tolerate: Callable[[OSError], bool] = lambda _error: False,
        skip: Callable[[str], bool] = lambda _path: False,
        leaving: bool = False,
        mounts: bool = False,
    ) -> None:
        self._top = top
        self._tolerate = tolerate
        self._skip = skip
        self._leaving = leaving
        self._mounts = mounts
        self._levels: list[_Level] = []
        # The path of the last level. Only one is kept, because the paths of all levels together
        # have the square of the depth.
        self._path = ""

    def __iter__(self) -> Iterator[Found]:
        """Yield the directory and all below it."""
        try:
            yield self._enter("", "", -1, self._top)
            while self._levels:
                level = self._levels[-1]
                if level.pending:
                    self._reopen()
                    name = level.pending.pop()
                    path = f"{self._path}/{name}" if self._path else name
                    if len(path) > _LONGEST_PATH:
                        raise OSError(errno.ENAMETOOLONG, "the directories are nested too deep")
                    if not self._skip(path):
                        yield self._find(level, path, name)
                    continue
                self._close(self._levels.pop())
                path, self._path = self._path, self._path[: -len(level.name) - 1]
                if self._leaving:
                    # The caller may delete the directory from the one above.
                    self._reopen()
                    parent = self._levels[-1].descriptor if self._levels else -1
                    yield Found(path, parent, level.name, level.status, left=True)
        finally:
            for level in self._levels:
                self._close(level)
            self._levels.clear()

    def _find(self, level: _Level, path: str, name: str) -> Found:
        if level.lost:
            return Found(path, -1, name, None, error=level.lost)
        try:
            status = os.stat(name, dir_fd=level.descriptor, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                return Found(path, level.descriptor, name, status, mounts=self._mounts)
            descriptor = openat.open_inside(level.descriptor, name, _FOLDER, self._mounts)
            return self._enter(path, name, level.descriptor, descriptor)
        except OSError as error:
            if not self._tolerate(error):
                raise
            return Found(path, level.descriptor, name, None, error=error)

    def _enter(self, path: str, name: str, directory: int, descriptor: int) -> Found:
        try:
            status = os.fstat(descriptor)
            names = sorted(os.listdir(descriptor))
        except BaseException:
            if descriptor != self._top:
                os.close(descriptor)
            raise
        self._path = path
        self._levels.append(_Level(name, status, names[::-1], descriptor))
        # The lowest directories stay open, and so does the top, which is the caller's.
        if len(self._levels) > _MOST_OPEN + 1:
            self._close(self._levels[-_MOST_OPEN - 1])
        return Found(path, directory, name, status, names, descriptor)

    def _close(self, level: _Level) -> None:
        if level.descriptor >= 0 and level.descriptor != self._top:
            os.close(level.descriptor)
            level.descriptor = -1

    def _reopen(self) -> None:
        """Open the directory at the place of the walk again, if it was closed.

        Because the directories above it are opened with it, a walk back up a deep tree takes few
        calls. Marks the directories that were moved or deleted meanwhile as lost.
        """
        if not self._levels or self._levels[-1].descriptor >= 0 or self._levels[-1].lost:
            return
        place = max(1, len(self._levels) - _MOST_OPEN)
        parent = self._top
        opened = []
        try:
            for path in _parts([level.name for level in self._levels[1:place]]):
                flags = os.O_PATH | os.O_DIRECTORY
                opened.append(openat.open_inside(parent, path, flags, self._mounts))
                parent = opened[-1]
            for level in self._levels[place:]:
                level.descriptor = openat.open_inside(parent, level.name, _FOLDER, self._mounts)
                if _key(os.fstat(level.descriptor)) != _key(level.status):
                    raise openat.ChangedError(level.name)
                parent = level.descriptor
                place += 1
        except OSError as error:
            if not self._tolerate(error):
                raise
            for level in self._levels[place:]:
                self._close(level)
                level.lost = error
        finally:
            for descriptor in opened:
                os.close(descriptor)


def _key(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_dev, status.st_ino, stat.S_IFMT(status.st_mode)


def _parts(names: Sequence[str]) -> Iterator[str]:
    """Yield a path in parts that one system call can take."""
    part: list[str] = []
    size = 0
    for name in names:
        part.append(name)
        size += len(os.fsencode(name)) + 1
        if size > _LONGEST_PART:
            yield "/".join(part)
            part, size = [], 0
    if part:
        yield "/".join(part)


def remove(directory: int, name: str) -> None:
    """Delete a file or a directory with all below it. Does nothing if it does not exist.

    Follows no link.

    :param directory: descriptor of the directory with the name
    :raises OSError: a file can't be deleted, or is another mount (EXDEV)
    """
    try:
        with openat.held(directory, name) as file:
            is_folder = stat.S_ISDIR(file.status.st_mode)
    except FileNotFoundError:
        return
    if not is_folder:
        os.unlink(name, dir_fd=directory)
        return
    descriptor = openat.open_inside(directory, name, _FOLDER)
    try:
        empty(descriptor)
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=directory)


def empty(directory: int) -> None:
    """Delete all below a directory.

    :param directory: descriptor of the directory, opened for reading
    :raises OSError: a file can't be deleted, or is another mount (EXDEV)
    """
    for found in Walk(directory, leaving=True):
        if not found.path:
            continue
        if found.left:
            os.rmdir(found.name, dir_fd=found.directory)
        elif found.descriptor < 0:
            os.unlink(found.name, dir_fd=found.directory)
