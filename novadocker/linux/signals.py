# SPDX-License-Identifier: Apache-2.0
"""The signals that a process handles."""

from pathlib import Path


def handles(process: int, signal: int, root: Path = Path("/")) -> bool:
    """Return True if a process catches a signal, or blocks it to read it as data (signalfd(2)).

    Returns True for a process that has ended, and for one that the kernel hides from the caller.

    :param root: directory that contains /proc
    """
    return _is_in(process, signal, root, b"SigCgt", b"SigBlk")


def leaves_default(process: int, signal: int) -> bool:
    """Return True if a process neither handles nor ignores a signal.

    The kernel then drops the signal if the process is the first one of a PID namespace.
    """
    return not _is_in(process, signal, Path("/"), b"SigCgt", b"SigBlk", b"SigIgn")


def _is_in(process: int, signal: int, root: Path, *masks: bytes) -> bool:
    try:
        # The process chooses its name, which may be no text, but the kernel escapes its line feeds.
        lines = (root / "proc" / str(process) / "status").read_bytes().split(b"\n")
    except OSError:
        # It has ended, or /proc is mounted with hidepid.
        return True
    fields = (line.partition(b":\t") for line in lines)
    return any(name in masks and int(mask, 16) >> (signal - 1) & 1 for name, _, mask in fields)
