# SPDX-License-Identifier: Apache-2.0
"""Processes that hang, since they are stopped."""

import os
import signal
from pathlib import Path

from devcloud.steps import wait_until

_SECONDS = 30


def suspend(process: int) -> None:
    """Stop a process until SIGCONT; when this returns none of its threads runs.

    One thread takes the signal when it gets a CPU, and the others go on until then.
    """
    os.kill(process, signal.SIGSTOP)
    wait_until(
        lambda: set(map(_state, Path(f"/proc/{process}/task").iterdir())) == {"T"},
        what=f"the stop of process {process}",
        advice="a thread of it may be waiting for a disk",
        timeout=_SECONDS,
        interval=0.01,
    )


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        # it ended while it was looked at
        return "T"
