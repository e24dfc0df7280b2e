# SPDX-License-Identifier: Apache-2.0
"""Privileged: short names for the folders of a server's layers, below /run.

mount(2) takes a page of options. The engine's own names of 40 layers fill it; by these, as many as
the engine stacks fit.
"""

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from novadocker import privsep
from novadocker.privsep import arguments

# each letter counts
FOLDER = Path("/run/novadocker/l")

_LAYER = re.compile(
    r"/(?:[\w.-]+/)+overlay2/(?:[0-9a-z]{25,64}(?:-init)?/(?:diff|work)|l/[0-9A-Z]{26})"
)
# beside the names, a link that leads nowhere
_OWNER = "of"


def names(instance_uuid: str, count: int) -> list[str]:
    """Return the names that so many folders of a server have."""
    return [f"{_folder(instance_uuid)}/{number:x}" for number in range(count)]


@privsep.storage_pctxt.entrypoint
def make(instance_uuid: str, folders: Sequence[str]) -> None:
    """Give folders of the engine their short names, in order; those of before are gone.

    :raises ValueError: an argument is not well-formed
    :raises FileExistsError: another server of this host has the names
    """
    owner = arguments.instance_uuid(instance_uuid)
    layers = [_layer(path) for path in arguments.items(folders)]
    folder = _folder(owner)
    for parent in (FOLDER.parent, FOLDER, folder):
        with suppress(FileExistsError):
            parent.mkdir(0o755)
    with suppress(FileExistsError):
        (folder / _OWNER).symlink_to(owner)
    if os.readlink(folder / _OWNER) != owner:
        raise FileExistsError(f"{folder} is another server's")
    for name, path in zip(names(owner, len(layers)), layers, strict=True):
        Path(name).unlink(missing_ok=True)
        Path(name).symlink_to(path)


def remove(instance_uuid: str) -> None:
    """Remove a server's short names; absent is fine."""
    # most servers have none, and need nobody with privileges
    if _folder(instance_uuid).is_dir():
        _remove(instance_uuid)


@privsep.storage_pctxt.entrypoint
def _remove(instance_uuid: str) -> None:
    owner = arguments.instance_uuid(instance_uuid)
    folder = _folder(owner)
    with suppress(FileNotFoundError):
        if os.readlink(folder / _OWNER) == owner:
            shutil.rmtree(folder)


def _folder(instance_uuid: str) -> Path:
    return FOLDER / instance_uuid[:8]


def _layer(path: object) -> str:
    return arguments.without_detours(arguments.text(_LAYER, path))
