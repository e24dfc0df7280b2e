# SPDX-License-Identifier: Apache-2.0
"""Reading the kernel's small files."""

import errno
import os
import resource
from collections.abc import Set
from contextlib import suppress

_LARGEST = 256 << 10
# what one turn reads; the most that a file of many records gives at once is a page
_TURN = 16 << 10

# an open file of a control group takes a page of the kernel's memory
_MOST_KEPT = 16384
_OTHERS = 2048

# of an open file: its group or process went away; or it is nothing that is counted here
_GONE = (errno.ENODEV, errno.ESRCH, errno.ENOENT)


def read(path: str) -> str | None:
    """Return what a file has, None if it is gone or this kernel has none.

    :raises PermissionError: the exporter lacks a right; that is the operator's to mend
    """
    return _read(path, _LARGEST)


def read_start(path: str) -> str | None:
    """Return the first records of a file, at most a page; otherwise as ``read``."""
    return _read(path, 1)


def _read(path: str, wanted: int) -> str | None:
    if (descriptor := _open(path)) is None:
        return None
    try:
        # such a file is made as it is read: a short answer is not its end, an empty one is
        content = part = os.read(descriptor, _TURN)
        while part and len(content) < wanted:
            part = os.read(descriptor, _TURN)
            content += part
    except OSError:
        # ENODEV, ESRCH: its group or process went away in between; EOPNOTSUPP: not counted here
        return None
    finally:
        os.close(descriptor)
    return content.decode("utf-8", "replace")


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        return None


def most_kept() -> int:
    """Return how many files this process may keep open, with its limit raised for that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_KEPT + _OTHERS
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(0, limit - _OTHERS)


class KeptFiles:
    """The files of control groups, kept open: to open one costs five times what reading it does.

    Not for files of a process: an open one keeps the process's namespaces. Not safe to share
    between threads.

    :param most: how many to keep open; more are read all the same, for more CPU time
    """

    def __init__(self, most: int) -> None:
        self._left = most
        self._descriptors: dict[str, dict[str, int]] = {}

    def read(self, group: str, path: str) -> str | None:
        """Return what a file has, None if it is gone or this kernel has none.

        :param group: what ``keep`` knows it by
        :raises PermissionError: the exporter lacks a right; that is the operator's to mend
        """
        kept = self._descriptors.setdefault(group, {})
        if (descriptor := kept.get(path)) is not None:
            try:
                return read_again(descriptor)
            except OSError as error:
                if error.errno not in _GONE:
                    return None
            # a server that starts again has a new group of the same name
            self._close(kept, path)
        if self._left <= 0:
            return read(path)
        if (descriptor := _open(path)) is None:
            return None
        kept[path] = descriptor
        self._left -= 1
        try:
            return read_again(descriptor)
        except OSError:
            return None

    def keep(self, groups: Set[str]) -> None:
        """Close all files but those of some groups."""
        for group in self._descriptors.keys() - groups:
            kept = self._descriptors.pop(group)
            for path in list(kept):
                self._close(kept, path)

    def close(self) -> None:
        """Close all files."""
        self.keep(frozenset())

    def _close(self, kept: dict[str, int], path: str) -> None:
        self._left += 1
        with suppress(OSError):
            os.close(kept.pop(path))


def read_again(descriptor: int) -> str:
    """Return what an open file of a control group has now.

    :raises OSError: the group is gone
    """
    content = part = os.pread(descriptor, _TURN, 0)
    # a group's file is one record, which is given at once unless it does not fit
    while len(part) == _TURN and len(content) < _LARGEST:
        part = os.pread(descriptor, _TURN, len(content))
        content += part
    return content.decode("utf-8", "replace")
