# SPDX-License-Identifier: Apache-2.0
"""Loop devices of the host, as volumes."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def volume(file: Path, size: int) -> Iterator[str]:
    """Yield the path of a loop device of a new sparse file.

    :param size: in bytes
    """
    file.touch()
    os.truncate(file, size)
    with device(file) as found:
        yield found


@contextmanager
def device(file: Path) -> Iterator[str]:
    """Yield the path of a loop device of a file."""
    found = subprocess.run(
        ["losetup", "--find", "--show", file], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        yield found
    finally:
        subprocess.run(["losetup", "--detach", found], check=True)
