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


def mounts_of(device: str) -> list[str]:
    """Return the mounts of a device in all mount namespaces, as lines of mountinfo."""
    number = os.stat(device).st_rdev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    found = {}
    for process in filter(str.isdecimal, os.listdir("/proc")):
        try:
            namespace = os.readlink(f"/proc/{process}/ns/mnt")
            lines = Path(f"/proc/{process}/mountinfo").read_text().splitlines()
        except OSError:
            continue
        found[namespace] = [line for line in lines if line.split()[2] == wanted]
    return [line for lines in found.values() for line in lines]


def is_claimed(device: str) -> bool:
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
    except OSError:
        return True
    return False
