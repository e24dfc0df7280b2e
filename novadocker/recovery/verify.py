# SPDX-License-Identifier: Apache-2.0
"""Reads every byte of a server, and compares it with a copy."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from novadocker.recovery import progress

_CHUNK = 1 << 20

# sockets are not copied: they mean nothing without their process
_LEFT_OUT = stat.S_ISSOCK


def problems(source: Path, copy: Path | None = None) -> Iterator[str]:
    """Yield what can't be read of a mounted file system, and how a copy of it differs."""
    seen = set()
    bar = progress.Bar(progress.used_bytes(source), "read")
    for path in _walk(source):
        relative = path.relative_to(source)
        seen.add(relative)
        try:
            wanted = _description(path, bar.add)
        except OSError as error:
            yield f"/{relative}: {error.strerror}"
            continue
        if copy is None:
            continue
        try:
            found = _description(copy / relative)
        except OSError as error:
            yield f"/{relative}: the copy: {error.strerror}"
            continue
        differing = [name for name, value in wanted.items() if found.get(name) != value]
        if differing:
            yield f"/{relative}: the copy differs in {', '.join(differing)}"
    bar.end()
    if copy is not None:
        for path in _walk(copy):
            if path.relative_to(copy) not in seen:
                yield f"/{path.relative_to(copy)}: only in the copy"


def _walk(top: Path) -> Iterator[Path]:
    yield top
    for folder, folders, files in os.walk(top):
        for name in [*folders, *files]:
            path = Path(folder, name)
            if not _LEFT_OUT(path.lstat().st_mode):
                yield path


def _description(path: Path, read: Callable[[int], None] | None = None) -> dict[str, object]:
    """Return what a copy must have of a file.

    :param read: is told how many bytes were read
    """
    status = path.lstat()
    found: dict[str, object] = {
        "type": stat.S_IFMT(status.st_mode),
        "mode": stat.S_IMODE(status.st_mode),
        "owner": (status.st_uid, status.st_gid),
        "attributes": {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        },
    }
    if stat.S_ISLNK(status.st_mode):
        found["link"] = os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        found["size"] = status.st_size
        found["content"] = _digest(path, read)
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        found["device"] = status.st_rdev
    return found


def _digest(path: Path, read: Callable[[int], None] | None) -> str:
    with path.open("rb") as source:
        digest = hashlib.sha256()
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            if read:
                read(len(chunk))
    return digest.hexdigest()
