# SPDX-License-Identifier: Apache-2.0
"""The signals that a process handles."""

from pathlib import Path


def handles(process: int, signal: int, root: Path = Path("/")) -> bool:
    """Return True if a process catches a signal, or blocks it to read it as data (signalfd(2)).

    Returns True for a process that has ended.

    :param root: directory that contains /proc
    """
    return _is_in(process, signal, root, "SigCgt", "SigBlk")


def leaves_default(process: int, signal: int) -> bool:
    """Return True if a process neither handles nor ignores a signal.

    The kernel then drops the signal if the process is the first one of a PID namespace.
    """
    return not _is_in(process, signal, Path("/"), "SigCgt", "SigBlk", "SigIgn")


def _is_in(process: int, signal: int, root: Path, *masks: str) -> bool:
    try:
        lines = (root / "proc" / str(process) / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return True
    found = dict(line.split(":\t", 1) for line in lines if line.startswith("Sig"))
    return any(int(found[mask], 16) >> (signal - 1) & 1 for mask in masks)
