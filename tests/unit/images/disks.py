# SPDX-License-Identifier: Apache-2.0
"""A disk of any size that the temporary files of images fill."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from novadocker.virt.docker.images import room


def small(monkeypatch: pytest.MonkeyPatch, size: int) -> list[int]:
    """Replace the free space by a size without the files' bytes; return each free space asked."""
    seen: list[int] = []

    def usage(folder: str) -> object:
        used = sum(used for _, used in room.shares(Path(folder)))
        seen.append(size - used)
        return SimpleNamespace(free=size - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return seen
