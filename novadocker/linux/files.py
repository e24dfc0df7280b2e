# SPDX-License-Identifier: Apache-2.0
"""Replacing files so that a reader sees either the old content or all of the new one."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

_PRIVATE = 0o600
_ANY = 0o666


def replace_file(path: Path, content: bytes, *, mode: int | None, sync: bool) -> None:
    """Write a file beside ``path`` and rename it to ``path``.

    :param mode: permissions of the file; None for those that the umask allows
    :param sync: whether the content and the name must be on the disk on return (fsync(2)), so that
        they survive a power failure
    :raises OSError: the file can't be written; the former one is unchanged
    """
    with replacement(path, mode=mode, sync=sync) as output:
        output.write(content)


@contextmanager
def replacement(path: Path, *, mode: int | None, sync: bool) -> Iterator[BinaryIO]:
    """Yield a file beside ``path`` to write to, and rename it to ``path`` when the body ends.

    If the body raises, the file is deleted and ``path`` is unchanged. The parameters are those of
    ``replace_file``.

    :raises OSError: the file can't be written
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    opener = partial(os.open, mode=_ANY if mode is None else _PRIVATE)
    with open(temporary, "xb", opener=opener) as output:
        try:
            yield output
            output.flush()
            if mode is not None:
                os.fchmod(output.fileno(), mode)
            if sync:
                os.fsync(output.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    if sync:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Write the entries of a directory to the disk; see fsync(2)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
