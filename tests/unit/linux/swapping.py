# SPDX-License-Identifier: Apache-2.0
"""An attacker who changes directories between the look at a name and its opening."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from novadocker.linux import openat, walk


def before_open(
    monkeypatch: pytest.MonkeyPatch, name: str, attack: Callable[[], object]
) -> list[str]:
    """Run an attack once, before a name in a directory is opened; return the attacks that ran."""
    original = openat.open_inside
    ran: list[str] = []

    def hooked(directory: int, path: str, flags: int, mounts: bool = False) -> int:
        if path == name and not ran:
            ran.append(name)
            attack()
        return original(directory, path, flags, mounts)

    monkeypatch.setattr(openat, "open_inside", hooked)
    return ran


def nest(top: Path, depth: int) -> None:
    """Create nested directories ``d`` with a file of 4 bytes in the lowest."""
    folder = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    with os.fdopen(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=folder), "w") as file:
        file.write("deep")
    os.close(folder)


def remove(top: Path) -> None:
    """Delete nested directories, which pytest can't."""
    folder = os.open(top, os.O_RDONLY)
    walk.remove(folder, "d")
    os.close(folder)
