# SPDX-License-Identifier: Apache-2.0
"""A disk of any size that the temporary files of images fill."""

import shutil

import pytest

from novadocker.virt.docker.images import room


def small(monkeypatch: pytest.MonkeyPatch, size: int) -> list[int]:
    """Replace the free space by a size without the files' bytes; return each free space asked."""
    whole = shutil.disk_usage("/")
    seen: list[int] = []

    def usage(_folder: object) -> object:
        used = sum(share._used for shares in room._shares.values() for share in shares)
        seen.append(size - used)
        return whole._replace(free=size - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return seen
