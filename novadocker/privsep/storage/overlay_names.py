# SPDX-License-Identifier: Apache-2.0
"""Privileged: short names for the directories of an instance's layers, below /run.

mount(2) accepts one page of options. The engine's own names of 40 layers fill a page; with these
names, as many layers fit as the engine stacks.
"""

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from novadocker import engine_paths, privsep
from novadocker.privsep import arguments
from novadocker.privsep.storage import callers

# Short, because it is in the options once a layer.
FOLDER = Path("/run/novadocker/l")

_LAYER = re.compile(engine_paths.MOUNTED_PATH)
# A symbolic link beside the names; its target is the UUID of the instance that has the names.
_OWNER = "of"


def names(instance_uuid: str, count: int) -> list[str]:
    """Return the names that ``count`` directories of an instance get."""
    return [f"{_folder(instance_uuid)}/{number:x}" for number in range(count)]


@privsep.storage_pctxt.entrypoint
def make(instance_uuid: str, folders: Sequence[str]) -> None:
    """Create the short names of the engine's directories, in order; replace those of before.

    :raises ValueError: an argument is malformed
    :raises PermissionError: users other than root can change the path of a directory
    :raises FileExistsError: another instance of this host has the names, because the first eight
        characters of both UUIDs are the same
    """
    owner = arguments.instance_uuid(instance_uuid)
    layers = [_layer(path) for path in arguments.items(folders)]
    # The engine, which is root, mounts the directories.
    for path in layers:
        with callers.opened(path):
            pass
    folder = _folder(owner)
    for parent in (FOLDER.parent, FOLDER, folder):
        with suppress(FileExistsError):
            parent.mkdir(0o755)
    with suppress(FileExistsError):
        (folder / _OWNER).symlink_to(owner)
    if os.readlink(folder / _OWNER) != owner:
        raise FileExistsError(f"{folder} belongs to another instance")
    for name, path in zip(names(owner, len(layers)), layers, strict=True):
        Path(name).unlink(missing_ok=True)
        Path(name).symlink_to(path)


def remove(instance_uuid: str) -> None:
    """Delete an instance's short names. Does nothing if it has none."""
    # Because most instances have none, which needs no privileges to see.
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
