# SPDX-License-Identifier: Apache-2.0
"""Execution of the system's programs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from novadocker.recovery.dataroot import RecoveryError

_SECONDS = 120


def run(*command: str, folder: Path = Path("/")) -> str:
    """Run a command and return its standard output.

    :param folder: working directory
    :raises RecoveryError: the program does not exist, failed, or did not end within two minutes
    """
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise RecoveryError(f"the program {command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise RecoveryError(f"{' '.join(command[:2])} did not end within {_SECONDS} s") from error
    if done.returncode != 0:
        raise RecoveryError(f"{' '.join(command[:2])} failed: {done.stderr.strip()}")
    return done.stdout
