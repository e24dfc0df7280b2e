# SPDX-License-Identifier: Apache-2.0
"""Which file system holds a path."""

from pathlib import Path
from typing import Any

import psutil


def mount_of(path: str) -> Any:
    """Return the mount that holds ``path``, as psutil describes it (``device``, ``opts``...)."""
    folder = Path(path).resolve()
    found = [
        mount
        for mount in psutil.disk_partitions(all=True)
        if folder.is_relative_to(mount.mountpoint)
    ]
    # of two mounts on one point the last is seen
    return max(reversed(found), key=lambda mount: len(mount.mountpoint))
