# SPDX-License-Identifier: Apache-2.0
"""Reads every byte of a server, and compares it with a copy."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from novadocker.linux import openat
from novadocker.recovery import progress

_CHUNK = 1 << 20

# sockets are not copied: they mean nothing without their process
_LEFT_OUT = stat.S_ISSOCK


def problems(source: Path, copy: Path | None = None) -> Iterator[str]:
    """Yield what can't be read of a mounted file system, and how a copy of it differs."""
    seen = set()
    unlisted: list[OSError] = []
    bar = progress.Bar(progress.used_bytes(source), "read")
    for relative in _walk(source, unlisted):
        seen.add(relative)
        try:
            wanted = _description(source, relative, bar.add)
        except OSError as error:
            yield f"/{relative}: {error.strerror}"
            continue
        if copy is None:
            continue
        try:
            found = _description(copy, relative)
        except OSError as error:
            yield f"/{relative}: the copy: {error.strerror}"
            continue
        differing = [name for name, value in wanted.items() if found.get(name) != value]
        if differing:
            yield f"/{relative}: the copy differs in {', '.join(differing)}"
    bar.end()
    yield from _told(source, unlisted)
    if copy is not None:
        unlisted.clear()
        for relative in _walk(copy, unlisted):
            if relative not in seen:
                yield f"/{relative}: only in the copy"
        yield from _told(copy, unlisted, "the copy: ")


def _told(top: Path, unlisted: Iterable[OSError], where: str = "") -> Iterator[str]:
    for error in unlisted:
        yield f"/{Path(error.filename).relative_to(top)}: {where}{error.strerror}"


def _walk(top: Path, unlisted: list[OSError]) -> Iterator[Path]:
    """Yield the paths of all files, as seen from the top.

    :param unlisted: gets why a folder can't be listed, or what is in it not be looked at
    """
    yield Path()
    for folder, folders, files in os.walk(top, onerror=unlisted.append):
        for name in [*folders, *files]:
            path = Path(folder, name)
            try:
                left_out = _LEFT_OUT(path.lstat().st_mode)
            except OSError as error:
                unlisted.append(error)
                continue
            if not left_out:
                yield path.relative_to(top)


def _description(
    top: Path, relative: Path, read: Callable[[int], None] | None = None
) -> dict[str, object]:
    """Return what a copy must have of a file.

    :param read: is told how many bytes were read
    """
    path = top / relative
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
        found["content"] = _digest(top, relative, read)
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        found["device"] = status.st_rdev
    return found


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    found = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield found
    finally:
        os.close(found)


def _digest(top: Path, relative: Path, read: Callable[[int], None] | None) -> str:
    # a server that runs may put a pipe, or a link to a file of the host's, here at any moment
    with (
        _opened(top) as root,
        openat.open_plain(root, str(relative)) as file,
        open(file, "rb", closefd=False) as source,
    ):
        digest = hashlib.sha256()
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            if read:
                read(len(chunk))
    return digest.hexdigest()
