# SPDX-License-Identifier: Apache-2.0
"""Runs the system's programs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from novadocker.recovery.dataroot import RecoveryError

_SECONDS = 120


def run(*command: str, folder: Path = Path("/")) -> str:
    """Return what a command prints.

    :param folder: where it runs
    :raises RecoveryError: there is none, it failed, or it did not end in two minutes
    """
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise RecoveryError(f"there is no program {command[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise RecoveryError(f"{' '.join(command[:2])} did not end in {_SECONDS} s") from error
    if done.returncode != 0:
        raise RecoveryError(f"{' '.join(command[:2])}: {done.stderr.strip()}")
    return done.stdout
