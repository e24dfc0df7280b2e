# SPDX-License-Identifier: Apache-2.0
"""The signals that a process handles."""

from pathlib import Path


def handles(process: int, signal: int, root: Path = Path("/")) -> bool:
    """Return True if a process catches a signal, or blocks it to read it as data (signalfd(2)).

    The kernel drops other signals to the first process of a PID namespace. Returns True for a
    process that has ended.

    :param root: directory that contains /proc
    """
    try:
        lines = (root / "proc" / str(process) / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return True
    masks = dict(line.split(":\t", 1) for line in lines if line.startswith("Sig"))
    return bool((int(masks["SigCgt"], 16) | int(masks["SigBlk"], 16)) >> (signal - 1) & 1)
