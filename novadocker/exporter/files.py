# SPDX-License-Identifier: Apache-2.0
"""Reading small files of procfs and of control groups."""

import errno
import os
import resource
from collections.abc import Set
from contextlib import suppress

_LARGEST = 256 << 10
# Size of one read(2). The kernel returns at most a page at once from a file of many records.
_TURN = 16 << 10

# The number is limited, because an open file of a control group takes a page of kernel memory.
_MOST_KEPT = 16384
_OTHERS = 2048

# Errors of a read that mean that the file's control group or process no longer exists.
_GONE = (errno.ENODEV, errno.ESRCH, errno.ENOENT)


def read(path: str) -> str | None:
    """Return the content of a file; None if it no longer exists or the kernel lacks it.

    :raises PermissionError: the exporter lacks a capability, which the operator must grant
    """
    return _read(path, _LARGEST)


def read_start(path: str) -> str | None:
    """Return the first records of a file, at most a page; otherwise like ``read``."""
    return _read(path, 1)


def _read(path: str, wanted: int) -> str | None:
    if (descriptor := _open(path)) is None:
        return None
    try:
        # The kernel generates the file while it is read, so only an empty read is its end.
        content = part = os.read(descriptor, _TURN)
        while part and len(content) < wanted:
            part = os.read(descriptor, _TURN)
            content += part
    except OSError:
        # ENODEV, ESRCH: the group or process ended meanwhile. EOPNOTSUPP: the kernel lacks it.
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
    """Raise this process's limit of open files. Return how many files it may keep open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_KEPT + _OTHERS
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(0, limit - _OTHERS)


class KeptFiles:
    """The files of control groups, kept open, because open(2) costs five times as much as read(2).

    Not for files of a process, because an open file keeps the process's namespaces alive. Not safe
    to share between threads.

    :param most: how many files to keep open; further files are opened at each read
    """

    def __init__(self, most: int) -> None:
        self._left = most
        self._descriptors: dict[str, dict[str, int]] = {}

    def read(self, group: str, path: str) -> str | None:
        """Return the content of a file; None if it no longer exists or the kernel lacks it.

        :param group: key of the control group for ``keep``
        :raises PermissionError: the exporter lacks a capability, which the operator must grant
        """
        kept = self._descriptors.setdefault(group, {})
        if (descriptor := kept.get(path)) is not None:
            try:
                return read_again(descriptor)
            except OSError as error:
                if error.errno not in _GONE:
                    return None
            # A restarted instance has a new control group of that name, so the file is reopened.
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
        """Close the files of all groups but these."""
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
    """Return the present content of an open file of a control group.

    :raises OSError: the group no longer exists
    """
    content = part = os.pread(descriptor, _TURN, 0)
    # The file is one record, so the kernel returns all of it unless the buffer is too small.
    while len(part) == _TURN and len(content) < _LARGEST:
        part = os.pread(descriptor, _TURN, len(content))
        content += part
    return content.decode("utf-8", "replace")
