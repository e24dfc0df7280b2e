# SPDX-License-Identifier: Apache-2.0
"""Ranges of the host's ids for instances with a user namespace of their own.

The file of an instance below /run/novadocker/ids has the first id of its range. The file exists
until the instance leaves this host or the host reboots. Because files on the disk have no ids of a
range, an instance may get another range afterwards.
"""

import errno
import fcntl
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from novadocker.linux.files import replace_file
from novadocker.runtime.record import IDS_OF_SERVER

FOLDER = Path("/run/novadocker/ids")
_PROCESSES = Path("/proc")


def choose(instance_uuid: str, pool: range, taken: Collection[int]) -> int | None:
    """Return the first id of a free range; None if there is none. Pure.

    An instance gets the same range again as long as that is free, and the ranges of deleted
    instances are not the next ones in use.

    :param pool: the ids for all ranges
    :param taken: the first ids of ranges that are not free
    """
    ranges = pool[::IDS_OF_SERVER][: len(pool) // IDS_OF_SERVER]
    begin = int(instance_uuid.replace("-", ""), 16) % len(ranges)
    rotated = (ranges[(begin + number) % len(ranges)] for number in range(len(ranges)))
    return next((first for first in rotated if first not in taken), None)


def ranges_of(pool: range, ids: Iterable[int]) -> set[int]:
    """Return the first ids of the ranges in a pool that contain one of these ids. Pure."""
    return {id_ - (id_ - pool.start) % IDS_OF_SERVER for id_ in ids if id_ in pool}


def hold(name: str, instance_uuid: str, pool: range) -> int:
    """Return the first id of an instance's range; choose one if it has none.

    :param name: name of the instance's namespaces
    :raises OSError: no range is free
    """
    for folder in (FOLDER.parent, FOLDER):
        with suppress(FileExistsError):
            folder.mkdir(0o755)
    with _locked():
        found = held(name)
        if found is not None:
            return found
        others = [first for first in map(held, os.listdir(FOLDER)) if first is not None]
        taken = ranges_of(pool, [*others, *_users_now()])
        first = choose(instance_uuid, pool, taken)
        if first is None:
            count = len(pool) // IDS_OF_SERVER
            reason = f"all {count} ranges of [docker] user_namespace_ids are in use"
            raise OSError(errno.ENOSPC, reason)
        replace_file(FOLDER / name, f"{first}\n".encode(), mode=0o644, sync=False)
        return first


def held(name: str) -> int | None:
    """Return the first id of an instance's range; None if it has none. Needs no privilege."""
    try:
        content = (FOLDER / name).read_bytes()
    except FileNotFoundError:
        return None
    return int(content) if re.fullmatch(rb"[0-9]{1,10}\n", content) else None


def release(name: str) -> None:
    """Let another instance have the range, after the last process with its ids. Idempotent."""
    (FOLDER / name).unlink(missing_ok=True)


def _users_now() -> Iterator[int]:
    """Yield the user id of each process. A process of a deleted instance may hang in the kernel.

    A process can have no other id than those of its user namespace.
    """
    for name in filter(str.isdecimal, os.listdir(_PROCESSES)):
        with suppress(FileNotFoundError):
            yield (_PROCESSES / name).stat().st_uid


@contextmanager
def _locked() -> Iterator[None]:
    folder = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
