# SPDX-License-Identifier: Apache-2.0
"""Suspension of processes, to simulate processes that hang."""

import os
import signal
from pathlib import Path

from devcloud.steps import wait_until

_SECONDS = 30


def suspend(process: int) -> None:
    """Stop a process until SIGCONT and wait until all of its threads have stopped.

    One thread takes the signal when it gets a CPU; the other threads run until then.
    """
    os.kill(process, signal.SIGSTOP)
    wait_until(
        lambda: set(map(_state, Path(f"/proc/{process}/task").iterdir())) == {"T"},
        what=f"the stop of process {process}",
        advice="one of its threads may be in uninterruptible sleep on a disk",
        timeout=_SECONDS,
        interval=0.01,
    )


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        # The thread ended meanwhile.
        return "T"
