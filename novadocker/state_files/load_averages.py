# SPDX-License-Identifier: Apache-2.0
"""The load averages of instances, in files like ``/proc/loadavg``, one for each instance.

The driver writes them. The instance reads its file at /proc/loadavg, the exporter reads all.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

# A line of a fixed length replaces every byte of the line before it.
_WIDTH = 63
_LINE = re.compile(r"([0-9]{1,9}\.[0-9]{2}) ([0-9]{1,9}\.[0-9]{2}) ([0-9]{1,9}\.[0-9]{2}) .*")


def directory(state_path: str) -> str:
    """Return the directory of the files, which are named by the instances' UUIDs.

    :param state_path: of nova-compute
    """
    return f"{state_path}/loads"


def path_of(state_path: str, instance_uuid: str) -> str:
    """Return the path of an instance's file."""
    return f"{directory(state_path)}/{instance_uuid}"


def render(averages: Sequence[float], running: int, total: int, last: int) -> bytes:
    """Return a line in the form of proc(5), always of the same length.

    :param averages: over 1, 5 and 15 minutes
    :param running: number of threads that are runnable
    :param total: number of threads
    :param last: highest thread id in the instance's process id namespace
    """
    shown = " ".join(f"{value:.2f}" for value in averages)
    line = f"{shown} {running}/{total} {last}"
    return f"{line:<{_WIDTH}}\n".encode()


def parse(text: str | None) -> tuple[float, float, float] | None:
    """Return the averages in a file's text, over 1, 5 and 15 minutes.

    None if the text is malformed, or if there is no file (None).
    """
    found = _LINE.fullmatch((text or "").rstrip())
    return (float(found[1]), float(found[2]), float(found[3])) if found else None


def write(file: Path, line: bytes) -> None:
    """Write a line into an instance's file.

    The file is overwritten and not replaced, because a bind mount shows the file that was there
    when it was mounted.

    :raises FileNotFoundError: the file does not exist
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, line, 0)
    finally:
        os.close(descriptor)


def read(file: Path) -> tuple[tuple[float, float, float] | None, float]:
    """Return the averages in a file as ``parse`` does, and when they were written.

    :returns: the time is in seconds since the epoch
    :raises FileNotFoundError: the file does not exist
    """
    with open(file, "rb") as source:
        text = source.read(_WIDTH + 1).decode("ascii", "replace")
        return parse(text), os.fstat(source.fileno()).st_mtime
