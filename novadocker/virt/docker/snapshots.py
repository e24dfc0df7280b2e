# SPDX-License-Identifier: Apache-2.0
"""A server's file system as an image: its image's layers and one more, of what it changed."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from novadocker import exception
from novadocker.virt.docker import archive, changes, flatten, freezer
from novadocker.virt.docker.archive import ArchivedImage, Layer
from novadocker.virt.docker.compression import ArchiveError, Region
from novadocker.virt.docker.engine import Engine
from novadocker.virt.docker.model import ContainerDetail


@contextlib.contextmanager
def take(
    engine: Engine, container: ContainerDetail, architecture: str, folder: Path, depth: int
) -> Iterator[ArchivedImage]:
    """Make an image of a container; it can be read within the block, which leaves nothing.

    A running container is frozen while what it changed is read, and for no longer.

    :param architecture: the host's, by Docker's name
    :param folder: where the layers are kept meanwhile
    :param depth: how many layers of snapshots the image may have before they become one
    :raises SnapshotFailed: the container can't become an image
    """
    with contextlib.ExitStack() as files:

        def new_file() -> int:
            # without a name in the folder: gone even if nova-compute is killed
            return files.enter_context(
                tempfile.TemporaryFile(dir=folder, prefix="novadocker-")
            ).fileno()

        try:
            layer = _read_changes(engine, container, new_file(), folder)
            base = files.enter_context(
                archive.open_image(
                    _save(engine, container, new_file(), folder), architecture, folder
                )
            )
            yield flatten.on_top(base, layer, depth, new_file)
        except (ArchiveError, OSError) as error:
            raise exception.SnapshotFailed(reason=str(error)) from error


def _read_changes(engine: Engine, container: ContainerDetail, file: int, folder: Path) -> Layer:
    storage = engine.inspect_storage(container.id)
    if storage.driver != "overlay2":
        raise exception.SnapshotFailed(
            reason=f"the engine's storage driver is {storage.driver}, overlay2 is supported"
        )
    if engine.info().user_namespaces:
        raise exception.SnapshotFailed(reason="the engine remaps users (userns-remap)")
    changes.start()
    with freezer.frozen(engine, container, folder):
        changes.write_layer(
            storage.upper,
            list(storage.lowers),
            dict(storage.volumes),
            (os.getpid(), file),
            _room(folder),
        )
    content = Region(file, 0, os.fstat(file).st_size)
    return Layer(content.digest(), content)


def _save(engine: Engine, container: ContainerDetail, file: int, folder: Path) -> Region:
    room = _room(folder)
    size = 0
    for chunk in engine.save_image(container.image_id):
        size += len(chunk)
        if size > room:
            raise ArchiveError("this host has no room for its image")
        view = memoryview(chunk)
        while view:
            view = view[os.write(file, view) :]
    return Region(file, 0, size)


def _room(folder: Path) -> int:
    # the engine needs room as well
    return shutil.disk_usage(folder).free // 2
