# SPDX-License-Identifier: Apache-2.0
"""A server's file system as an image: its image's layers and one more, of what it changed."""

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from novadocker import exception
from novadocker.virt.docker import archive, arrival, changes, flatten, freezer, packing
from novadocker.virt.docker.archive import Layer
from novadocker.virt.docker.compression import ArchiveError, Region
from novadocker.virt.docker.engine import Engine
from novadocker.virt.docker.model import ContainerDetail


@contextlib.contextmanager
def take(
    engine: Engine, container: ContainerDetail, architecture: str, folder: Path, depth: int
) -> Iterator[Iterator[bytes]]:
    """Make an image of a container; its archive can be read within the block, which leaves nothing.

    A running container is frozen while what it changed is read, and for no longer. The layers of
    its image are passed on while the engine still writes them.

    :param architecture: the host's, by Docker's name
    :param folder: where the layers are kept meanwhile
    :param depth: how many layers of snapshots the image may have before they become one
    :raises SnapshotFailed: the container can't become an image; while the archive is read, too
    """
    with contextlib.ExitStack() as files:

        def new_file() -> int:
            # without a name in the folder: gone even if nova-compute is killed
            return files.enter_context(
                tempfile.TemporaryFile(dir=folder, prefix="novadocker-")
            ).fileno()

        with _translated():
            layer = _read_changes(engine, container, new_file(), folder)
        base = files.enter_context(
            arrival.arriving(new_file(), functools.partial(_save, engine, container, folder))
        )
        merged = _is_full(engine, container.image_id, depth)

        def pieces() -> Iterator[bytes]:
            with _translated():
                if not merged:
                    yield from base.layers()
                with archive.open_image(base.complete(), architecture, folder) as image:
                    whole = flatten.on_top(image, layer, depth, new_file)
                    yield from packing.docker_archive(whole, base.early)

        yield pieces()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (ArchiveError, OSError) as error:
        raise exception.SnapshotFailed(reason=str(error)) from error


def _is_full(engine: Engine, image_id: str, depth: int) -> bool:
    try:
        steps = engine.image_history(image_id)
    except exception.EngineError:
        # a tenant's image may have any history
        return True
    return flatten.is_full(steps, engine.inspect_image(image_id).layers, depth)


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


def _save(engine: Engine, container: ContainerDetail, folder: Path, file: arrival.Arrival) -> None:
    room = _room(folder)
    for chunk in engine.save_image(container.image_id):
        room -= len(chunk)
        if room < 0:
            raise ArchiveError("this host has no room for its image")
        file.write(chunk)


def _room(folder: Path) -> int:
    # the engine needs room as well
    return shutil.disk_usage(folder).free // 2
