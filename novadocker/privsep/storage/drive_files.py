# SPDX-License-Identifier: Apache-2.0
"""Privileged: the directory of a config drive, with ``files`` and the image of its device.

The engine and the driver later open what is in the directory by its path. So a directory that
another host sent is not used itself: its content is read and written again, and only directories
and regular files are accepted.
"""

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from novadocker.linux import openat, walk
from novadocker.privsep import arguments

FILES = "files"
IMAGE = "config-2.iso"
MOST_BYTES = 32 << 20

_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")
# The names of directories precede the name of the file.
_PATH = re.compile(r"([^/]+/){0,8}[^/]+")
_MOST_FILES = 1000
# With the directories.
_MOST_NAMES = 10 * _MOST_FILES


@dataclass(frozen=True)
class Drive:
    """The content of a config drive.

    :ivar files: contents by relative path
    :ivar owner: user and group id of the files on the host
    :ivar image: content of the block device; empty without one
    """

    files: Mapping[str, bytes]
    owner: tuple[int, int] = (0, 0)
    image: bytes = b""


def write(target: Path, drive: Drive) -> None:
    """Write the directory of a config drive. Replaces an older one.

    :raises ValueError: a path is malformed, or the content is too large
    """
    _check(drive)
    target.parent.mkdir(0o700, parents=True, exist_ok=True)
    # A crash must not leave half a config drive, so the directory is filled and then renamed.
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix="."))
    try:
        (made / FILES).mkdir(0o755)
        for path, content in drive.files.items():
            file = made / FILES / path
            file.parent.mkdir(0o755, parents=True, exist_ok=True)
            _write(file, content)
            os.chown(file, *drive.owner)
        if drive.image:
            _write(made / IMAGE, drive.image)
        delete(target)
        os.rename(made, target)
    except BaseException:
        shutil.rmtree(made)
        raise


def delete(folder: Path) -> None:
    """Delete the directory of a config drive. Does nothing if it does not exist."""
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def read(directory: int) -> Drive:
    """Return the content of a directory that another host sent.

    :param directory: its descriptor, opened for reading
    :raises OSError: ``write`` makes no such directory
    """
    files: dict[str, bytes] = {}
    owners: set[tuple[int, int]] = set()
    image = b""
    left = MOST_BYTES
    for number, found in enumerate(walk.Walk(directory)):
        if number > _MOST_NAMES:
            raise _refused(found.path, "has too many files")
        top, _, path = found.path.partition("/")
        assert found.status
        if stat.S_ISDIR(found.status.st_mode):
            if top not in ("", FILES):
                raise _refused(found.path, "is a directory")
            continue
        # A second name could be of a file that the server can write to.
        if not stat.S_ISREG(found.status.st_mode) or found.status.st_nlink != 1:
            raise _refused(found.path, "is not a regular file with one name")
        with found.held() as file:
            content = _content(file, left)
        left -= len(content)
        if found.path == IMAGE:
            image = content
        elif top == FILES and path:
            files[path] = content
            owners.add((found.status.st_uid, found.status.st_gid))
        else:
            raise _refused(found.path, "is unknown")
    if len(owners) > 1:
        raise _refused(FILES, "has several owners")
    drive = Drive(files, owners.pop() if owners else (0, 0), image)
    try:
        _check(drive)
    except ValueError as error:
        raise _refused(FILES, "has other files than a config drive") from error
    return drive


def read_image(folder: Path) -> bytes:
    """Return the image in the directory of a config drive.

    :raises OSError: the directory has no image, or it is not a regular file, or too large
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    directory = os.open(folder, flags)
    try:
        with openat.held(directory, IMAGE) as file:
            return _content(file, MOST_BYTES)
    finally:
        os.close(directory)


def _content(file: openat.Held, most: int) -> bytes:
    with file.opened() as descriptor, open(descriptor, "rb", closefd=False) as source:
        content = source.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"the config drive has more than {MOST_BYTES} bytes")
    return content


def _refused(path: str, reason: str) -> OSError:
    # In ASCII, because the path may have bytes that no text has.
    return OSError(errno.EINVAL, f"the config drive is refused: {path[:200]!a} {reason}")


def _write(file: Path, content: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(descriptor, "wb") as output:
        output.write(content)


def _check(drive: Drive) -> None:
    contents = [*drive.files.values(), drive.image]
    if len(drive.files) > _MOST_FILES or sum(map(len, contents)) > MOST_BYTES:
        raise ValueError(
            f"the config drive has more than {_MOST_FILES} files or {MOST_BYTES} bytes"
        )
    _check_paths(drive.files)


def _check_paths(paths: Iterable[str]) -> None:
    """Raise ValueError unless all are relative paths and none is a directory of another one."""
    folders = set()
    for path in paths:
        *above, _ = names = arguments.text(_PATH, path).split("/")
        for name in names:
            arguments.text(_NAME, name)
        folders |= {"/".join(above[: end + 1]) for end in range(len(above))}
    if not folders.isdisjoint(paths):
        raise ValueError("a path in the config drive is a file and a directory")
