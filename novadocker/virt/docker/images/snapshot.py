# SPDX-License-Identifier: Apache-2.0
"""Snapshots: images of the layers of an instance's image and one layer of its changes."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from novadocker import exception, privsep
from novadocker.linux import pipes
from novadocker.privsep.storage import containerd_layers, layer_archive, layer_diff
from novadocker.virt.docker.containers import freeze
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.host import filesystem
from novadocker.virt.docker.images import archive, room, squash
from novadocker.virt.docker.images.archive import ArchivedImage, Layer
from novadocker.virt.docker.images.platforms import Platform
from novadocker.virt.docker.images.regions import ArchiveError, Region
from novadocker.virt.docker.model import OVERLAYFS, ContainerDetail, EngineInfo, Storage


@contextlib.contextmanager
def take(
    engine: Engine, container: ContainerDetail, platform: Platform, folder: Path, depth: int
) -> Iterator[ArchivedImage]:
    """Yield the image of a container, which can be read within the block.

    A running container is frozen only while its changes are read. The layers of its image are read
    from the engine's data root. With containerd's image store, the engine saves the image first.

    :param platform: of the host
    :param folder: directory for the temporary file with the layer of the changes
    :param depth: if the image has so many layers of snapshots, they are merged into one
    :raises SnapshotFailed: the container's files or the image's layers can't be read, or have no
        room on this host
    :raises RanMeanwhile: the container was stopped or paused, and ran while its files were read
    """
    with contextlib.ExitStack() as files:

        def new_file() -> int:
            # The kernel deletes a file without a name, even if nova-compute is killed.
            return files.enter_context(
                tempfile.TemporaryFile(dir=folder, prefix="novadocker-")
            ).fileno()

        try:
            info = engine.info()
            storage = _storage(engine, info, container)
            base = (
                files.enter_context(_saved_base(engine, container.image_id, platform, folder))
                if info.containerd_store
                else _base(info.data_root, container.image_id)
            )
            layer = _read_changes(engine, container, storage, new_file(), folder)
            merged = base.layers[squash.count_kept(base, depth) :]
            if sum(lower.content.size for lower in merged) > room.left(folder):
                raise ArchiveError("this host has not enough free space for the image")
            yield squash.on_top(base, layer, depth, new_file)
        except (ArchiveError, OSError, *privsep.UNANSWERED) as error:
            raise exception.SnapshotFailed(reason=str(error)) from error


def _storage(engine: Engine, info: EngineInfo, container: ContainerDetail) -> Storage:
    """Return the directories of a container's files.

    :raises OSError: containerd does not tell them
    """
    found = engine.inspect_storage(container.id)
    if info.user_namespaces:
        raise exception.SnapshotFailed(reason="the engine remaps users (userns-remap)")
    if info.containerd_store and info.storage_driver == OVERLAYFS:
        socket = filesystem.containerd_socket(info)
        if not socket:
            raise exception.SnapshotFailed(
                reason="the engine does not tell the socket of its containerd; Engine 27 does"
            )
        upper, *lowers = containerd_layers.list_folders(socket, container.id)
        return replace(found, upper=upper, lowers=tuple(lowers))
    if found.driver != "overlay2":
        raise exception.SnapshotFailed(
            reason=f"the engine's storage driver is {found.driver}; it must be overlay2"
        )
    return found


def _read_changes(
    engine: Engine, container: ContainerDetail, storage: Storage, file: int, folder: Path
) -> Layer:
    layer_diff.start()
    with freeze.frozen(engine, container, folder):
        layer_diff.write_layer(
            storage.upper,
            list(storage.lowers),
            dict(storage.volumes),
            (os.getpid(), file),
            room.left(folder),
        )
    content = Region(file, 0, os.fstat(file).st_size)
    return Layer(content.digest(), content)


@dataclass(frozen=True)
class _StoredLayer:
    """A layer in the engine's data root, read as a tar archive.

    :ivar chain: chain id of the layer: the digest of the layer and all below it, in hex
    """

    data_root: str
    chain: str
    size: int

    def chunks(self) -> Iterator[bytes]:
        """Yield the archive in chunks.

        :raises OSError: the layer can't be read
        """

        def write(target: tuple[int, int]) -> int:
            return int(layer_archive.write_layer(self.data_root, self.chain, target))

        with pipes.read_from(write) as (chunks, writing):
            yield from chunks
            writing.result()


@contextlib.contextmanager
def _saved_base(
    engine: Engine, image_id: str, platform: Platform, folder: Path
) -> Iterator[ArchivedImage]:
    """Yield a container's image, which the engine saves into a temporary file.

    :raises ArchiveError: the saved image is malformed, or has not enough room on this host
    """
    with (
        room.Share(folder) as share,
        tempfile.TemporaryFile(dir=folder, prefix="novadocker-") as file,
    ):
        for chunk in engine.save_image(image_id):
            share.use(len(chunk))
            file.write(chunk)
        file.flush()
        saved = Region(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        with archive.open_image(saved, platform, folder) as base:
            yield base


def _base(data_root: str, image_id: str) -> ArchivedImage:
    """Return a container's image in the engine's data root.

    :raises ArchiveError: the image's configuration is malformed or does not match its digest
    :raises OSError: the image can't be read
    """
    config = bytes(layer_archive.read_config(data_root, image_id.removeprefix("sha256:")))
    layers: list[Layer] = []
    chain = ""
    for digest in archive.layer_digests(config):
        above = f"sha256:{chain} sha256:{digest}".encode()
        chain = hashlib.sha256(above).hexdigest() if chain else digest
        size = int(layer_archive.measure_layer(data_root, chain))
        layers.append(Layer(digest, _StoredLayer(data_root, chain, size)))
    found = ArchivedImage(config, tuple(layers))
    if f"sha256:{found.digest}" != image_id:
        raise ArchiveError("the configuration of its image does not match its digest")
    return found
