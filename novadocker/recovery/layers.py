# SPDX-License-Identifier: Apache-2.0
"""The directories of a container's file system, by storage driver."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from novadocker import engine_paths
from novadocker.recovery.dataroot import DataRoot, RecoveryError, Server, read_text

_SHORT_NAME = re.compile(engine_paths.SHORT_NAME)


@dataclass(frozen=True)
class FileSystem:
    """A file system as a stack of directories, the container's own first.

    :ivar base: directory that ``folders`` are relative to, because mount(2) limits the length of
        all options to one page
    """

    base: Path
    folders: tuple[str, ...]


def file_system(root: DataRoot, server: Server) -> FileSystem:
    """Return the file system of a server.

    :raises RecoveryError: the storage driver is not supported, or a layer is missing
    """
    if server.driver == "overlayfs":
        raise RecoveryError(
            "containerd's image store has the files of the server, which this command does not read"
        )
    layer = root.layer(server)
    match server.driver:
        case "overlay2":
            return _overlay(engine_paths.overlay(root.path), layer)
        case "btrfs":
            found = FileSystem(engine_paths.btrfs_subvolumes(root.path), (layer,))
        case "vfs":
            found = FileSystem(engine_paths.vfs_layers(root.path), (layer,))
        case _:
            raise RecoveryError(f"the storage driver {server.driver!r} is not supported")
    _require(found)
    return found


def _overlay(base: Path, layer: str) -> FileSystem:
    lower = read_text(base / layer / "lower").strip().split(":")
    by_short_name: dict[str, str] = {}
    folders = [f"{layer}/diff"]
    for name in lower:
        if not _SHORT_NAME.fullmatch(name):
            raise RecoveryError(f"{base / layer / 'lower'} is damaged")
        if not (base / name).is_dir():
            # The directory of short names is damaged, but each layer has a file with its own.
            by_short_name = by_short_name or _short_names(base)
            name = by_short_name.get(name, name)
        folders.append(name)
    found = FileSystem(base, tuple(folders))
    _require(found)
    return found


def _short_names(base: Path) -> dict[str, str]:
    names = {}
    for link in base.glob("*/link"):
        # A damaged file may belong to a layer of another container. If it does not, the layer is
        # reported as missing later.
        with suppress(RecoveryError):
            names[f"l/{read_text(link).strip()}"] = f"{link.parent.name}/diff"
    return names


def _require(found: FileSystem) -> None:
    for folder in found.folders:
        if not (found.base / folder).is_dir():
            raise RecoveryError(f"the layer {found.base / folder} is missing")
