# SPDX-License-Identifier: Apache-2.0
"""The sign of life that the driver leaves when nova-compute's periodic task asks it something."""

import time
from contextlib import suppress
from pathlib import Path

_FILE = "novadocker-alive"


def tell(state_path: Path) -> None:
    """Leave the sign; a disk that takes none costs the sign alone.

    :param state_path: nova-compute's
    """
    with suppress(OSError):
        (state_path / _FILE).touch()


def age(state_path: Path) -> float:
    """Return the seconds since the last sign.

    :raises FileNotFoundError: there was none yet
    """
    return time.time() - (state_path / _FILE).stat().st_mtime
