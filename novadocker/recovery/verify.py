# SPDX-License-Identifier: Apache-2.0
"""Verification that every byte of a server can be read and equals a copy."""

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

# Sockets are not copied, because they are useless without their process.
_LEFT_OUT = stat.S_ISSOCK


def problems(source: Path, copy: Path | None = None) -> Iterator[str]:
    """Yield a line for each file of a mounted file system that can't be read or differs in a copy.

    :param copy: the directory that ``copies.copy_folder`` wrote; None to only read the files
    """
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
            yield f"/{relative}: the copy can't be read: {error.strerror}"
            continue
        differing = [name for name, value in wanted.items() if found.get(name) != value]
        if differing:
            yield f"/{relative}: the copy differs in {', '.join(differing)}"
    bar.end()
    yield from _unreadable(source, unlisted)
    if copy is not None:
        unlisted.clear()
        for relative in _walk(copy, unlisted):
            if relative not in seen:
                yield f"/{relative}: only in the copy"
        yield from _unreadable(copy, unlisted, "the copy: ")


def _unreadable(top: Path, unlisted: Iterable[OSError], where: str = "") -> Iterator[str]:
    for error in unlisted:
        yield f"/{Path(error.filename).relative_to(top)}: {where}{error.strerror}"


def _walk(top: Path, unlisted: list[OSError]) -> Iterator[Path]:
    """Yield the paths of all files, relative to ``top``.

    :param unlisted: receives the errors of directories and files that can't be read
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
    """Return the properties of a file that a copy must have, too.

    :param read: called with the number of bytes after each read
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
    # A running server may meanwhile replace the file by a pipe or by a link to a file of the host.
    with (
        _opened(top) as root,
        openat.open_regular(root, str(relative)) as file,
        open(file, "rb", closefd=False) as source,
    ):
        digest = hashlib.sha256()
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            if read:
                read(len(chunk))
    return digest.hexdigest()
