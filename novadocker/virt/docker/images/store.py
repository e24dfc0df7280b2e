# SPDX-License-Identifier: Apache-2.0
"""Images from Glance to the engine: downloaded, verified and loaded once per host.

In the engine an image is called ``novadocker/<Glance id>:<first 12 hex digits of its checksum>``.
Names inside an archive never take effect, see ``archive``.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glanceclient import exc as glance_errors
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.image import glance
from oslo_concurrency import lockutils
from oslo_log import log as logging
from oslo_utils import timeutils

from novadocker import exception, naming
from novadocker.conf import CONF
from novadocker.privsep.storage import sparse_files
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.images import (
    archive,
    registry,
    snapshot,
    squash,
    streaming,
    writer,
)
from novadocker.virt.docker.images.archive import ArchivedImage
from novadocker.virt.docker.images.regions import ArchiveError, ChunkReader, Region
from novadocker.virt.docker.model import ContainerDetail, EngineImage

LOG = logging.getLogger(__name__)

_FORMATS = {"container_format": "docker", "disk_format": "raw"}

_Loader = Callable[[Region, str, Path], contextlib.AbstractContextManager[ArchivedImage]]

_LOADERS: dict[tuple[str | None, ...], _Loader] = {
    ("docker", "raw"): archive.open_image,
    ("bare", "raw"): archive.open_root,
}

# an image that was named this long ago is named again when it is used
_NAMED_SECONDS = 60

# a fault has 255 characters
_LONGEST_REASON = 120

_CHECKSUM_OF_NOTHING = hashlib.md5(b"", usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def locked(image_id: str) -> Iterator[None]:
    """Hold an image's lock, which all threads and processes of this host share, for the block."""
    with lockutils.lock(
        f"novadocker-image-{image_id}",
        external=True,
        lock_path=os.path.join(CONF.instances_path, "locks"),
    ):
        yield


@dataclass(frozen=True)
class _Source:
    """Where an image comes from.

    :ivar tag: 12 hex digits that change when the image does
    :ivar fetched: gets it into the engine; it stays there unless the block fails
    """

    tag: str
    fetched: Callable[[], contextlib.AbstractContextManager[str]]


class ImageStore:
    """The images of Glance that the engine has.

    :param architecture: the host's, by Nova's name
    """

    def __init__(self, engine: Engine, architecture: str) -> None:
        self._engine = engine
        self._architecture = naming.docker_architecture(architecture)
        self._glance = glance.API()
        self._registries = registry.registries(
            CONF.docker.allowed_registries,
            CONF.docker.registry_mirrors,
            CONF.docker.registry_credentials_file,
        )

    def ensure(
        self, context: nova_context.RequestContext, image_meta: objects.ImageMeta
    ) -> EngineImage:
        """Return the engine's image of a Glance image; load it unless it is there.

        However many servers boot at once, in any number of processes, it is loaded once.

        :raises InvalidImage: the image can't be booted on this host; nothing of it is left
        :raises EngineError: the engine refused the image
        :raises nova.exception.ImageNotFound: Glance has no such image (and Nova's other errors
            of the image service)
        """
        return self._ensure(context, image_meta)[0]

    def cache(self, context: nova_context.RequestContext, image_id: str) -> bool:
        """Have an image in the engine; tell whether it had to be loaded. Raises as ``ensure``."""
        image_meta = objects.ImageMeta.from_dict(self._glance.get(context, image_id))
        return self._ensure(context, image_meta)[1]

    def _ensure(
        self, context: nova_context.RequestContext, image_meta: objects.ImageMeta
    ) -> tuple[EngineImage, bool]:
        source = self._source(context, image_meta)
        name = naming.image_name(image_meta.id, source.tag)
        with contextlib.suppress(exception.EngineImageNotFound):
            return self._use(name), False
        with locked(image_meta.id):
            # another boot may have loaded it while this one waited
            with contextlib.suppress(exception.EngineImageNotFound):
                return self._use(name), False
            started = time.monotonic()
            with source.fetched() as loaded:
                self._engine.tag_image(loaded, *name.split(":"))
            LOG.info("Loaded image %s in %.1f s", name, time.monotonic() - started)
            return self._engine.inspect_image(name), True

    def _use(self, name: str) -> EngineImage:
        found = self._engine.inspect_image(name)
        # tells the cache that it is in use; the images of many boots are named once
        if found.named_at is None or timeutils.is_older_than(found.named_at, _NAMED_SECONDS):
            self._engine.tag_image(found.id, *name.split(":"))
        return found

    def _source(
        self, context: nova_context.RequestContext, image_meta: objects.ImageMeta
    ) -> "_Source":
        """Return where an image comes from: from Glance if that has data, else from a registry."""
        # two ids that differ in letter case must not share a name
        if image_meta.id != image_meta.id.lower():
            raise exception.InvalidImage(
                image_id=image_meta.id, reason="its id has capital letters, the engine allows none"
            )
        load = _loader(image_meta)
        checksum = image_meta.checksum if image_meta.obj_attr_is_set("checksum") else None
        if checksum and checksum != _CHECKSUM_OF_NOTHING:
            return _Source(
                checksum[:12], functools.partial(self._loaded, context, image_meta.id, load)
            )
        record = self._glance.get(context, image_meta.id)
        text = (record.get("properties") or {}).get("docker_image")
        if text and load is archive.open_image:
            reference = registry.parse(str(text), image_meta.id, self._registries.allowed)
            tag = hashlib.sha256(str(text).encode()).hexdigest()[:12]
            return _Source(tag, functools.partial(self._pulled, image_meta.id, reference))
        checksum = record.get("checksum") or _checksum(image_meta.id, record)[1]
        return _Source(checksum[:12], functools.partial(self._loaded, context, image_meta.id, load))

    @contextlib.contextmanager
    def _pulled(self, image_id: str, reference: registry.Reference) -> Iterator[str]:
        """Fetch an image from its registry; it stays if it gets a name within the block."""
        # for all that fetch at once: the name by the digest goes in the end
        with locked("of-registries"):
            try:
                name = registry.pull(self._engine, reference, self._registries)
            except exception.EngineUnavailable:
                raise
            except exception.EngineError as error:
                raise exception.InvalidImage(
                    image_id=image_id, reason=str(error.kwargs["reason"])
                ) from error
            try:
                found = self._engine.inspect_image(name)
                if found.platform != f"linux/{self._architecture}":
                    raise exception.InvalidImage(
                        image_id=image_id,
                        reason=f"it is for {found.platform}; "
                        f"this host runs linux/{self._architecture}",
                    )
                yield found.id
            finally:
                self._engine.remove_image(name)

    @contextlib.contextmanager
    def snapshot(self, container: ContainerDetail) -> Iterator[ArchivedImage]:
        """Make an image of a container, to be uploaded within the block.

        :raises SnapshotFailed: the container can't become an image
        """
        with snapshot.take(
            self._engine,
            container,
            Path(CONF.instances_path),
            CONF.docker.snapshot_depth,
        ) as image:
            yield image

    def upload(
        self, context: nova_context.RequestContext, image_id: str, image: ArchivedImage
    ) -> None:
        """Give a Glance image without data its data, streamed; delete it if that fails.

        :raises SnapshotFailed: Glance has not got all of it
        :raises nova.exception.NovaException: Nova's errors of the image service
        """
        source = ChunkReader(_readable(writer.docker_archive(image)))
        with contextlib.ExitStack() as undo:
            # the manager does the same, except when it shelves
            undo.callback(self._delete, context, image_id)
            record = self._glance.update(context, image_id, dict(_FORMATS), data=source)
            # Nova's client tries again when a connection fails, with what was not sent yet
            if record.get("size") != source.size:
                raise exception.SnapshotFailed(
                    reason=f"Glance has {record.get('size')} of its {source.size} bytes"
                )
            undo.pop_all()

    def _delete(self, context: nova_context.RequestContext, image_id: str) -> None:
        try:
            self._glance.delete(context, image_id)
        except nova_exception.NovaException as error:
            LOG.warning("Image %s of a failed snapshot is left: %s", image_id, error)

    @contextlib.contextmanager
    def _loaded(
        self, context: nova_context.RequestContext, image_id: str, load: _Loader
    ) -> Iterator[str]:
        """Load an image from Glance; it stays unless the block fails."""
        folder = Path(CONF.instances_path)
        record = self._glance.get(context, image_id)
        if (record.get("size") or 0) > shutil.disk_usage(folder).free // 2:
            raise exception.DownloadFailed(image_id=image_id, reason="this host has no room for it")

        def fetch(file: streaming.Arrival) -> None:
            self._glance.download(context, image_id, data=file)

        # Nova's client compares with it, and leaves be what has none
        _checksum(image_id, record)
        with (
            self._unpacking(image_id) as unpack,
            streaming.arriving(folder, fetch) as arriving,
        ):
            chunks = self._forwarded(image_id, load, arriving, unpack)
            try:
                loaded = self._engine.load_image(chunks)
            except ArchiveError as error:
                raise exception.InvalidImage(image_id=image_id, reason=str(error)) from error
        with contextlib.ExitStack() as undo:
            undo.callback(self._engine.remove_image, loaded)
            snapshots_of_it = self._engine.layer_folders(loaded, squash.SNAPSHOT)
            if snapshots_of_it:
                sparse_files.dig(snapshots_of_it)
            yield loaded
            undo.pop_all()

    @contextlib.contextmanager
    def _unpacking(self, image_id: str) -> Iterator[streaming.Unpack]:
        """Give what has the engine unpack an image's lowest layer, and keep it for the block."""
        name = naming.image_name(image_id, naming.ARRIVING)
        with contextlib.ExitStack() as undo:

            def unpack(chunks: Iterator[bytes]) -> str:
                # what a nova-compute left that was killed meanwhile
                self._engine.remove_image(name)
                undo.callback(self._engine.remove_image, name)
                try:
                    return self._engine.unpack_layer(
                        _downloaded(image_id, chunks), *name.split(":")
                    )
                except exception.EngineUnavailable:
                    raise
                except exception.EngineError as error:
                    LOG.info("Part of image %s is taken for no layer: %s", image_id, error)
                    return ""

            yield unpack

    def _forwarded(
        self, image_id: str, load: _Loader, arriving: streaming.Arrival, unpack: streaming.Unpack
    ) -> Iterator[bytes]:
        """Return what the engine is to load, of an image that may still be on its way.

        :raises DownloadFailed: it did not come whole
        """

        def sent() -> Iterator[bytes]:
            if load is archive.open_image:
                # containerd's image store knows images by the digests of what was packed
                stacks = self._engine.info().storage_driver == "overlay2"
                yield from arriving.layers(unpack if stacks else None)
            with load(arriving.complete(), self._architecture, Path(CONF.instances_path)) as image:
                yield from writer.docker_archive(image, arriving.early, arriving.unpacked)

        return _downloaded(image_id, sent())


def _readable(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Return the pieces of a snapshot for Glance's client.

    :raises SnapshotFailed: a layer can't be read, or does not match its digest
    """
    try:
        yield from chunks
    except (ArchiveError, OSError) as error:
        # else the client would take it for one of its connection, and try again
        raise exception.SnapshotFailed(reason=str(error)) from error


def _downloaded(image_id: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Return the pieces of a download for the engine's client.

    :raises DownloadFailed: it did not come whole
    """
    try:
        yield from chunks
    except (OSError, glance_errors.ClientException) as error:
        # else the engine's client would take it for one of its connection
        raise exception.DownloadFailed(
            image_id=image_id, reason=str(error)[:_LONGEST_REASON]
        ) from error


def _loader(image_meta: objects.ImageMeta) -> _Loader:
    """Return what reads the data of an image, by its formats."""
    found = tuple(
        getattr(image_meta, name) if image_meta.obj_attr_is_set(name) else None
        for name in ("container_format", "disk_format")
    )
    if found not in _LOADERS:
        raise exception.InvalidImage(
            image_id=image_meta.id,
            reason=f"its container_format is {found[0]} and its disk_format {found[1]}; "
            "they must be docker (or bare, for a root file system) and raw",
        )
    return _LOADERS[found]


def _checksum(image_id: str, record: dict[str, Any]) -> tuple[str, str]:
    """Return the algorithm and the hex digits of the best checksum that Glance has.

    :raises InvalidImage: it has none, or one that Python can't make
    """
    algorithm, value = "md5", record.get("checksum")
    if record.get("os_hash_algo") and record.get("os_hash_value"):
        algorithm, value = str(record["os_hash_algo"]), record["os_hash_value"]
    if not value:
        raise exception.InvalidImage(image_id=image_id, reason="Glance has no checksum of it")
    if algorithm not in hashlib.algorithms_available:
        raise exception.InvalidImage(
            image_id=image_id, reason=f"its checksum is of the unknown kind {algorithm}"
        )
    return algorithm, str(value)
