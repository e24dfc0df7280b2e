# SPDX-License-Identifier: Apache-2.0
"""Verification that every byte of a server can be read and equals a copy.

A running server may meanwhile replace a directory or a file by a link to one of the host, so no
path is resolved: see ``novadocker.linux.walk``.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from novadocker.linux import openat, walk
from novadocker.recovery import progress

_CHUNK = 1 << 20


def problems(source: Path, copy: Path | None = None) -> Iterator[str]:
    """Yield a line for each file of a mounted file system that can't be read or differs in a copy.

    :param copy: the directory that ``copies.copy_folder`` wrote; None to only read the files
    """
    seen = set()
    bar = progress.Bar(progress.used_bytes(source), "read")
    with ExitStack() as opened:
        top = _open(opened, source)
        copied = None if copy is None else _open(opened, copy)
        for found in _walk(top):
            seen.add(found.path)
            try:
                with found.held() as file:
                    wanted = _description(file, bar.add)
            except OSError as error:
                yield f"/{found.path}: {error.strerror}"
                continue
            if copied is None:
                continue
            try:
                with openat.held(copied, found.path or ".", mounts=True) as file:
                    there = _description(file)
            except OSError as error:
                yield f"/{found.path}: the copy can't be read: {error.strerror}"
                continue
            differing = [name for name, value in wanted.items() if there.get(name) != value]
            if differing:
                yield f"/{found.path}: the copy differs in {', '.join(differing)}"
        bar.end()
        if copied is not None:
            for found in _walk(copied):
                if found.error:
                    yield f"/{found.path}: the copy: {found.error.strerror}"
                elif found.path not in seen:
                    yield f"/{found.path}: only in the copy"


def _open(opened: ExitStack, folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    opened.callback(os.close, descriptor)
    return descriptor


def _walk(top: int) -> Iterator[walk.Found]:
    """Yield all files but sockets, which are not copied, as they are useless without a process."""
    for found in walk.Walk(top, tolerate=lambda _error: True, mounts=True):
        if not found.status or not stat.S_ISSOCK(found.status.st_mode):
            yield found


def _description(file: openat.Held, read: Callable[[int], None] | None = None) -> dict[str, object]:
    """Return the properties of a file that a copy must have, too.

    :param read: called with the number of bytes after each read
    """
    status = file.status
    found: dict[str, object] = {
        "type": stat.S_IFMT(status.st_mode),
        "mode": stat.S_IMODE(status.st_mode),
        "owner": (status.st_uid, status.st_gid),
        "attributes": file.attributes(),
    }
    if stat.S_ISLNK(status.st_mode):
        found["link"] = file.target()
    elif stat.S_ISREG(status.st_mode):
        found["size"] = status.st_size
        found["content"] = _digest(file, read)
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        found["device"] = status.st_rdev
    return found


def _digest(file: openat.Held, read: Callable[[int], None] | None) -> str:
    with file.opened() as descriptor, open(descriptor, "rb", closefd=False) as source:
        digest = hashlib.sha256()
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            if read:
                read(len(chunk))
    return digest.hexdigest()
