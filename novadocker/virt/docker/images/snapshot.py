# SPDX-License-Identifier: Apache-2.0
"""Snapshots: images of the layers of an instance's image and one layer of its changes."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from novadocker import exception, privsep
from novadocker.linux import pipes
from novadocker.privsep.storage import layer_archive, layer_diff
from novadocker.virt.docker.containers import freeze
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.images import archive, room, squash
from novadocker.virt.docker.images.archive import ArchivedImage, Layer
from novadocker.virt.docker.images.regions import ArchiveError, Region
from novadocker.virt.docker.model import ContainerDetail


@contextlib.contextmanager
def take(
    engine: Engine, container: ContainerDetail, folder: Path, depth: int
) -> Iterator[ArchivedImage]:
    """Yield the image of a container, which can be read within the block.

    A running container is frozen only while its changes are read. The layers of its image are read
    from the engine's data root.

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
            layer = _read_changes(engine, container, new_file(), folder)
            base = _base(engine.info().data_root, container.image_id)
            merged = base.layers[squash.count_kept(base, depth) :]
            if sum(lower.content.size for lower in merged) > room.left(folder):
                raise ArchiveError("this host has not enough free space for the image")
            yield squash.on_top(base, layer, depth, new_file)
        except (ArchiveError, OSError, *privsep.UNANSWERED) as error:
            raise exception.SnapshotFailed(reason=str(error)) from error


def _read_changes(engine: Engine, container: ContainerDetail, file: int, folder: Path) -> Layer:
    storage = engine.inspect_storage(container.id)
    if storage.driver != "overlay2":
        raise exception.SnapshotFailed(
            reason=f"the engine's storage driver is {storage.driver}; it must be overlay2"
        )
    if engine.info().user_namespaces:
        raise exception.SnapshotFailed(reason="the engine remaps users (userns-remap)")
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
