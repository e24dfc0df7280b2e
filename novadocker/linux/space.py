# SPDX-License-Identifier: Apache-2.0
"""The space of file systems."""

import os
from pathlib import Path


def of_data_root(directory: Path) -> os.statvfs_result:
    """Return the statistics of the file system of an engine's data root.

    An engine that remaps users has its data root one level deeper, in a directory that nova-compute
    may not enter; then the parent directory is used.
    """
    try:
        return os.statvfs(directory)
    except PermissionError:
        return os.statvfs(directory.parent)


def free(directory: Path) -> int:
    """Return the free bytes of the file system of an engine's data root."""
    disk = of_data_root(directory)
    return disk.f_bavail * disk.f_frsize
