# SPDX-License-Identifier: Apache-2.0
"""Images of Glance in the engine: downloaded, verified and loaded once per host.

An image's name in the engine is ``novadocker/<Glance id>:<first 12 hex digits of its checksum>``.
The names in an archive have no effect, see ``archive``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cursive.exception import SignatureVerificationError
from glanceclient import exc as glance_errors
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.image import glance
from oslo_concurrency import lockutils
from oslo_log import log as logging
from oslo_utils import timeutils

from novadocker import exception, naming, privsep
from novadocker.conf import CONF
from novadocker.privsep.storage import sparse_files
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.host import resources
from novadocker.virt.docker.images import (
    archive,
    empty,
    registry,
    room,
    signatures,
    snapshot,
    squash,
    streaming,
    writer,
)
from novadocker.virt.docker.images.archive import ArchivedImage
from novadocker.virt.docker.images.platforms import Platform, host_platform
from novadocker.virt.docker.images.regions import (
    ArchiveError,
    ChunkReader,
    Region,
    UnfitHostError,
)
from novadocker.virt.docker.images.signatures import Demand
from novadocker.virt.docker.model import ContainerDetail, EngineImage

LOG = logging.getLogger(__name__)

_FORMATS = {"container_format": "docker", "disk_format": "raw"}

_Loader = Callable[[Region, Platform, Path, int], contextlib.AbstractContextManager[ArchivedImage]]

_LOADERS: dict[tuple[str | None, ...], _Loader] = {
    ("docker", "raw"): archive.open_image,
    ("bare", "raw"): archive.open_root,
}

# An image that is used is tagged again if its last tag is older than this.
_NAMED_SECONDS = 60

# Nova cuts a fault to 255 characters.
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
    """The source of an image: Glance or a registry.

    :ivar tag: 12 hex digits that change with the image's content
    :ivar fetched: loads the image into the engine and yields its id; removes it if the block fails
    """

    tag: str
    fetched: Callable[[], contextlib.AbstractContextManager[str]]


class ImageStore:
    """The images of Glance in the engine.

    :param architecture: of the host, by Nova's name
    """

    def __init__(self, engine: Engine, architecture: str) -> None:
        self._engine = engine
        self._platform = host_platform(
            naming.docker_architecture(architecture), resources.read_cpu_features()
        )
        self._glance = glance.API()
        self._registries = registry.registries(
            CONF.docker.allowed_registries,
            CONF.docker.registry_mirrors,
            CONF.docker.registry_credentials_file,
            CONF.docker.registry_verify_command,
        )

    def ensure(
        self,
        context: nova_context.RequestContext,
        image_meta: objects.ImageMeta,
        trusted: objects.TrustedCerts | None = None,
        most: int = 0,
    ) -> EngineImage:
        """Load a Glance image unless the engine has it, and return the engine's image.

        If several threads or processes ask for an image at once, it is loaded once.

        :param trusted: the server's trusted image certificates
        :param most: bytes that the image may have when it is unpacked; 0 means no bound
        :raises InvalidImage: the image can't be booted; the engine keeps none of it
        :raises UnfitHost: the image can't be booted on this host; the engine keeps none of it
        :raises EngineError: the engine refused the image
        :raises nova.exception.ImageNotFound: the image does not exist in Glance (and Nova's other
            errors of the image service and of signatures)
        """
        found = self._ensure(context, image_meta, trusted, most)[0]
        # The engine may have the image since a boot with a larger disk.
        if most and found.size_bytes > most:
            raise _too_large(image_meta.id, found.size_bytes, most)
        return found

    def describe(self, context: nova_context.RequestContext, image_id: str) -> objects.ImageMeta:
        """Return Nova's record of a Glance image.

        :raises nova.exception.NovaException: Nova's errors of the image service
        """
        return objects.ImageMeta.from_dict(self._glance.get(context, image_id))

    def ensure_empty(self) -> EngineImage:
        """Load the image without files unless the engine has it, and return it.

        :raises EngineError: the engine refused the image
        """
        name = naming.image_name(empty.ID, empty.TAG)
        with locked(empty.ID):
            with contextlib.suppress(exception.EngineImageNotFound):
                return self._use(name)
            with empty.image(self._platform) as image:
                loaded = self._engine.load_image(writer.docker_archive(image))
            self._engine.tag_image(loaded, *name.split(":"))
            return self._engine.inspect_image(name)

    def cache(self, context: nova_context.RequestContext, image_id: str) -> bool:
        """Load a Glance image unless the engine has it. Raises as ``ensure``.

        :returns: True if the image was loaded
        """
        return self._ensure(context, self.describe(context, image_id), None, 0)[1]

    def _ensure(
        self,
        context: nova_context.RequestContext,
        image_meta: objects.ImageMeta,
        trusted: objects.TrustedCerts | None,
        most: int,
    ) -> tuple[EngineImage, bool]:
        demand = signatures.demand(CONF.glance, trusted.ids if trusted else ())
        source = self._source(context, image_meta, demand, most)
        name = naming.image_name(image_meta.id, source.tag)
        with contextlib.suppress(exception.EngineImageNotFound):
            return self._use(name), False
        with locked(image_meta.id):
            # Another boot may have loaded the image while this one waited for the lock.
            with contextlib.suppress(exception.EngineImageNotFound):
                return self._use(name), False
            started = time.monotonic()
            with source.fetched() as loaded:
                self._engine.tag_image(loaded, *name.split(":"))
            LOG.info("Loaded image %s in %.1f s", name, time.monotonic() - started)
            return self._engine.inspect_image(name), True

    def _use(self, name: str) -> EngineImage:
        found = self._engine.inspect_image(name)
        # The image cache takes the last tag as the last use. One tag is enough for many boots.
        if found.named_at is None or timeutils.is_older_than(found.named_at, _NAMED_SECONDS):
            self._engine.tag_image(found.id, *name.split(":"))
        return found

    def _source(
        self,
        context: nova_context.RequestContext,
        image_meta: objects.ImageMeta,
        demand: Demand,
        most: int,
    ) -> _Source:
        """Return the source of an image: Glance if it has the image's data, else a registry."""
        # The engine's names are lower case, so two ids that differ in case would share a name.
        if image_meta.id != image_meta.id.lower():
            raise exception.InvalidImage(
                image_id=image_meta.id,
                reason="its id has capital letters, which the engine does not allow in names",
            )
        load = _loader(image_meta)
        loaded = functools.partial(self._loaded, context, image_meta.id, load, demand, most)
        checksum = image_meta.checksum if image_meta.obj_attr_is_set("checksum") else None
        if checksum and checksum != _CHECKSUM_OF_NOTHING:
            return _Source(checksum[:12] + demand.mark, loaded)
        record = self._glance.get(context, image_meta.id)
        text = (record.get("properties") or {}).get("docker_image")
        if text and load is archive.open_image:
            self._check_registry_suffices(image_meta.id, demand)
            reference = registry.parse(str(text), image_meta.id, self._registries.allowed)
            tag = hashlib.sha256(str(text).encode()).hexdigest()[:12]
            mark = "-verified" if self._registries.verify_command else ""
            return _Source(
                tag + mark, functools.partial(self._pulled, image_meta.id, reference, most)
            )
        checksum = record.get("checksum") or _checksum(image_meta.id, record)[1]
        return _Source(checksum[:12] + demand.mark, loaded)

    def _check_registry_suffices(self, image_id: str, demand: Demand) -> None:
        """Refuse an image of a registry if its verification would be weaker than demanded.

        The operator's command replaces the signature, but does not know a server's certificates.

        :raises InvalidImage: Glance has no data that a signature could cover
        """
        if demand.certificates or (demand.signed and not self._registries.verify_command):
            raise exception.InvalidImage(
                image_id=image_id,
                reason="its signature must be verified, but its data is in a registry, not in "
                "Glance",
            )

    @contextlib.contextmanager
    def _pulled(self, image_id: str, reference: registry.Reference, most: int) -> Iterator[str]:
        """Pull an image and yield its id. Remove it unless the block gives it another name."""
        # Because the name by the digest is removed at the end, only one pull may use it at a time.
        with locked("of-registries"):
            try:
                name = registry.pull(self._engine, reference, self._registries, most)
            except exception.EngineUnavailable:
                raise
            except exception.ImageTooLarge as error:
                raise _too_large(image_id, error.kwargs["size"], most) from error
            except exception.VerificationFailed as error:
                raise exception.UnfitHost(
                    image_id=image_id, reason=str(error.kwargs["reason"])
                ) from error
            except (exception.EngineError, exception.PullCutOff) as error:
                # On another host, an image without end would fill the disk, too.
                raise exception.InvalidImage(
                    image_id=image_id, reason=str(error.kwargs["reason"])
                ) from error
            try:
                found = self._engine.inspect_image(name)
                if found.platform != self._platform.text:
                    raise exception.InvalidImage(
                        image_id=image_id,
                        reason=f"it is for {found.platform}; this host runs {self._platform.text}",
                    )
                yield found.id
            finally:
                self._engine.remove_image(name)

    @contextlib.contextmanager
    def snapshot(self, container: ContainerDetail) -> Iterator[ArchivedImage]:
        """Yield the image of a container, which can be uploaded within the block.

        :raises SnapshotFailed: see ``snapshot.take``
        """
        with snapshot.take(
            self._engine,
            container,
            self._platform,
            Path(CONF.instances_path),
            CONF.docker.snapshot_depth,
        ) as image:
            yield image

    def upload(
        self, context: nova_context.RequestContext, image_id: str, image: ArchivedImage
    ) -> None:
        """Upload the data of a Glance image that has none. Delete the Glance image on failure.

        :raises SnapshotFailed: the image can't be read, or Glance did not store all of it
        :raises nova.exception.NovaException: Nova's errors of the image service
        """
        source = ChunkReader(_readable(writer.docker_archive(image)))
        with contextlib.ExitStack() as undo:
            # Nova's manager deletes it, too, but not if the instance is being shelved.
            undo.callback(self._delete, context, image_id)
            record = self._glance.update(context, image_id, dict(_FORMATS), data=source)
            # After a connection error, Nova's client sends only the rest of the data again.
            if record.get("size") != source.size:
                raise exception.SnapshotFailed(
                    reason=f"Glance stored {record.get('size')} of {source.size} bytes"
                )
            undo.pop_all()

    def _delete(self, context: nova_context.RequestContext, image_id: str) -> None:
        try:
            self._glance.delete(context, image_id)
        except nova_exception.NovaException as error:
            LOG.warning("Failed to delete image %s of a failed snapshot: %s", image_id, error)

    @contextlib.contextmanager
    def _loaded(
        self,
        context: nova_context.RequestContext,
        image_id: str,
        load: _Loader,
        demand: Demand,
        most: int,
    ) -> Iterator[str]:
        """Load an image from Glance and yield its id. Remove it if the block fails."""
        record = self._glance.get(context, image_id)
        trusted = objects.TrustedCerts(ids=sorted(demand.certificates))

        def fetch(file: streaming.Arrival) -> None:
            # Nova's client verifies the signature.
            self._glance.download(
                context,
                image_id,
                data=file,
                trusted_certs=trusted if demand.certificates else None,
            )

        # Nova's client compares the checksum, but accepts an image without one.
        _checksum(image_id, record)
        with (
            self._unpacking(image_id) as unpack,
            self._arriving(image_id, record.get("size") or 0, fetch) as arriving,
        ):
            chunks = self._forwarded(image_id, load, most, arriving, unpack)
            try:
                loaded = self._engine.load_image(chunks)
            except UnfitHostError as error:
                raise exception.UnfitHost(image_id=image_id, reason=str(error)) from error
            except ArchiveError as error:
                raise exception.InvalidImage(image_id=image_id, reason=str(error)) from error
        with contextlib.ExitStack() as undo:
            undo.callback(self._engine.remove_image, loaded)
            snapshots_of_it = self._engine.layer_directories(loaded, squash.SNAPSHOT)
            if snapshots_of_it:
                sparse_files.dig(snapshots_of_it)
            yield loaded
            undo.pop_all()

    @contextlib.contextmanager
    def _arriving(
        self, image_id: str, size: int, fetch: Callable[[streaming.Arrival], None]
    ) -> Iterator[streaming.Arrival]:
        with contextlib.ExitStack() as arrived:
            try:
                found = arrived.enter_context(
                    streaming.arriving(Path(CONF.instances_path), size, fetch)
                )
            except room.NoRoomError as error:
                raise exception.DownloadFailed(
                    image_id=image_id, reason=str(error.strerror)
                ) from error
            yield found

    @contextlib.contextmanager
    def _unpacking(self, image_id: str) -> Iterator[streaming.Unpack]:
        """Yield a function that unpacks the lowest layer of an image in the engine.

        The engine keeps the layer until the end of the block.
        """
        name = naming.image_name(image_id, naming.ARRIVING)
        with contextlib.ExitStack() as undo:

            def unpack(chunks: Iterator[bytes]) -> str:
                # A nova-compute that was killed may have left its own.
                self._engine.remove_image(name)
                undo.callback(self._engine.remove_image, name)
                try:
                    return self._engine.unpack_layer(
                        _downloaded(image_id, chunks), *name.split(":")
                    )
                except exception.EngineUnavailable:
                    raise
                except exception.EngineError as error:
                    LOG.info("Failed to unpack a layer of image %s early: %s", image_id, error)
                    return ""

            yield unpack

    def _forwarded(
        self,
        image_id: str,
        load: _Loader,
        most: int,
        arriving: streaming.Arrival,
        unpack: streaming.Unpack,
    ) -> Iterator[bytes]:
        """Return the archive for the engine, of an image that may still be downloaded.

        :raises DownloadFailed: the download failed
        """

        def sent() -> Iterator[bytes]:
            if load is archive.open_image:
                # containerd's image store identifies images by the digests of compressed layers.
                stacks = self._engine.info().storage_driver == "overlay2"
                yield from arriving.layers(unpack if stacks else None)
            folder = Path(CONF.instances_path)
            with load(arriving.complete(), self._platform, folder, most) as image:
                yield from writer.docker_archive(image, arriving.early, arriving.unpacked)

        return _downloaded(image_id, sent())


def _readable(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the chunks of a snapshot for Glance's client.

    :raises SnapshotFailed: a layer can't be read, or does not match its digest
    """
    try:
        yield from chunks
    except (ArchiveError, OSError, *privsep.UNANSWERED) as error:
        # The client would take an OSError for a connection error and try again.
        raise exception.SnapshotFailed(reason=str(error)) from error


def _downloaded(image_id: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the chunks of a download for the engine's client.

    :raises DownloadFailed: the download failed
    :raises InvalidImage: the image does not match its signature, or has no valid one
    """
    try:
        yield from chunks
    except InvalidSignature as error:
        raise exception.InvalidImage(
            image_id=image_id, reason="it does not match its signature (img_signature)"
        ) from error
    except SignatureVerificationError as error:
        raise exception.InvalidImage(
            image_id=image_id, reason=f"its signature cannot be verified: {error}"
        ) from error
    except (OSError, glance_errors.ClientException) as error:
        # The engine's client would take an OSError for a connection error.
        raise exception.DownloadFailed(
            image_id=image_id, reason=str(error)[:_LONGEST_REASON]
        ) from error


def _too_large(image_id: str, size: int, most: int) -> exception.InvalidImage:
    return exception.InvalidImage(
        image_id=image_id,
        reason=f"it unpacks to {size} bytes or more, but the flavor's root disk has only {most}",
    )


def _loader(image_meta: objects.ImageMeta) -> _Loader:
    """Return the function that reads an image's archive, by the image's formats."""
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
    """Return the algorithm and the hex digits of Glance's strongest checksum of an image.

    :raises InvalidImage: Glance has no checksum, or Python does not support the algorithm
    """
    algorithm, value = "md5", record.get("checksum")
    if record.get("os_hash_algo") and record.get("os_hash_value"):
        algorithm, value = str(record["os_hash_algo"]), record["os_hash_value"]
    if not value:
        raise exception.InvalidImage(image_id=image_id, reason="Glance has no checksum of it")
    if algorithm not in hashlib.algorithms_available:
        raise exception.InvalidImage(
            image_id=image_id, reason=f"its checksum algorithm {algorithm} is not supported"
        )
    return algorithm, str(value)
