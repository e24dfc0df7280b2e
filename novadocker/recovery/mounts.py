# SPDX-License-Identifier: Apache-2.0
"""Mounting of a server's file system without ever writing to the data root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

from novadocker.linux import openat
from novadocker.recovery import thin
from novadocker.recovery.commands import run
from novadocker.recovery.dataroot import DataRoot, RecoveryError, Server
from novadocker.recovery.layers import FileSystem, file_system


def mount(root: DataRoot, server: Server, target: Path, changes: Path | None = None) -> None:
    """Mount a server's file system with its volumes.

    :param target: an empty directory
    :param changes: directory that receives all writes to the mount; None to mount read-only
    :raises RecoveryError: a layer is missing, or the kernel refuses a mount
    """
    if not target.is_dir() or any(target.iterdir()):
        raise RecoveryError(f"{target} is not an empty directory")
    with _opened(root, server) as stack:
        _mount_stack(stack, target, changes and changes / "root")
    with ExitStack() as undo:
        undo.callback(unmount, target)
        for volume in server.volumes:
            source = FileSystem(root.volume_folder(volume), (".",))
            with _folder_in(target, str(volume.destination)) as inside:
                _mount_stack(source, inside, changes and changes / "volumes" / volume.name)
        undo.pop_all()


def unmount(target: Path) -> None:
    """Unmount a file system that ``mount`` mounted, with its volumes.

    :raises RecoveryError: the file system is in use or not mounted
    """
    run("umount", "--recursive", str(target))


def _opened(root: DataRoot, server: Server) -> AbstractContextManager[FileSystem]:
    if server.driver == "devicemapper":
        return thin.opened(root, root.layer(server))
    return nullcontext(file_system(root, server))


def _mount_stack(stack: FileSystem, target: Path, changes: Path | None) -> None:
    if not (stack.base / stack.folders[0]).is_dir():
        raise RecoveryError(f"{stack.base / stack.folders[0]} is missing")
    options = [f"lowerdir={':'.join(stack.folders)}"]
    if changes is not None:
        if any(mark in str(changes) for mark in ":,\\"):
            raise RecoveryError(f"{changes} must not contain colons, commas or backslashes")
        upper, work = changes / "upper", changes / "work"
        for folder in (upper, work):
            folder.mkdir(parents=True, exist_ok=True)
        options += [f"upperdir={upper.resolve()}", f"workdir={work.resolve()}"]
        # The upper directory becomes the root of the mount, so it gets the owner and mode of the
        # container's root.
        status = (stack.base / stack.folders[0]).stat()
        os.chown(upper, status.st_uid, status.st_gid)
        upper.chmod(status.st_mode & 0o7777)
    elif len(stack.folders) == 1:
        # A read-only overlay needs at least two directories.
        run("mount", "--bind", stack.folders[0], str(target), folder=stack.base)
        run("mount", "-o", "remount,bind,ro,nosuid,nodev", str(target), folder=stack.base)
        return
    else:
        options.append("ro")
    words = ("-t", "overlay", "-o", ",".join([*options, "nosuid", "nodev"]))
    run("mount", *words, "novadocker-recover", str(target), folder=stack.base)


@contextmanager
def _folder_in(target: Path, path: str) -> Iterator[Path]:
    """Yield a path to a directory in a mounted file system; its links can't lead out of it."""
    base = os.open(target, os.O_PATH | os.O_DIRECTORY)
    try:
        inside = openat.open_directory(base, path)
    except OSError as error:
        raise RecoveryError(
            f"the directory {path} of a volume can't be opened: {error.strerror}"
        ) from error
    finally:
        os.close(base)
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{inside}")
    finally:
        os.close(inside)
