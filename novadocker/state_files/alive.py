# SPDX-License-Identifier: Apache-2.0
"""A file whose modification time records the last periodic task of nova-compute."""

import time
from contextlib import suppress
from pathlib import Path

_FILE = "novadocker-alive"


def tell(state_path: Path) -> None:
    """Set the file's modification time to now.

    Errors are ignored, because a full disk must not fail the periodic task.

    :param state_path: of nova-compute
    """
    with suppress(OSError):
        (state_path / _FILE).touch()


def age(state_path: Path) -> float:
    """Return the seconds since the last periodic task.

    :raises FileNotFoundError: no periodic task has run yet
    """
    return time.time() - (state_path / _FILE).stat().st_mtime
