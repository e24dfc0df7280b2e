# SPDX-License-Identifier: Apache-2.0
"""Images from Glance to the engine: downloaded, verified and loaded once per host.

In the engine an image is called ``novadocker/<Glance id>:<first 12 hex digits of its checksum>``.
Names inside an archive never take effect, see ``archive``.
"""

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from nova import conf, objects
from nova import context as nova_context
from nova.image import glance
from oslo_concurrency import lockutils
from oslo_log import log as logging

from novadocker import exception
from novadocker.virt.docker import archive
from novadocker.virt.docker.compression import ArchiveError, Region
from novadocker.virt.docker.engine import Engine
from novadocker.virt.docker.model import EngineImage

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Nova's name of an architecture: Docker's, where they differ
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

_FORMATS = {"container_format": "docker", "disk_format": "raw"}


class ImageStore:
    """The images of Glance that the engine has.

    :param architecture: the host's, by Nova's name
    """

    def __init__(self, engine: Engine, architecture: str) -> None:
        self._engine = engine
        self._architecture = _ARCHITECTURES.get(architecture, architecture)
        self._glance = glance.API()

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
        _check_format(image_meta)
        repository, tag = self._name(context, image_meta)
        name = f"{repository}:{tag}"
        with contextlib.suppress(exception.EngineImageNotFound):
            return self._engine.inspect_image(name)
        with lockutils.lock(
            f"novadocker-image-{image_meta.id}",
            external=True,
            lock_path=os.path.join(CONF.instances_path, "locks"),
        ):
            # another boot may have loaded it while this one waited
            with contextlib.suppress(exception.EngineImageNotFound):
                return self._engine.inspect_image(name)
            started = time.monotonic()
            self._load(context, image_meta.id, repository, tag)
            LOG.info("Loaded image %s in %.1f s", name, time.monotonic() - started)
            return self._engine.inspect_image(name)

    def _name(
        self, context: nova_context.RequestContext, image_meta: objects.ImageMeta
    ) -> tuple[str, str]:
        # two ids that differ in letter case must not share a name
        if image_meta.id != image_meta.id.lower():
            raise exception.InvalidImage(
                image_id=image_meta.id, reason="its id has capital letters, the engine allows none"
            )
        checksum = image_meta.checksum if image_meta.obj_attr_is_set("checksum") else None
        if not checksum:
            record = self._glance.get(context, image_meta.id)
            checksum = record.get("checksum") or _checksum(image_meta.id, record)[1]
        return f"novadocker/{image_meta.id}", checksum[:12]

    def _load(
        self, context: nova_context.RequestContext, image_id: str, repository: str, tag: str
    ) -> None:
        folder = Path(CONF.instances_path)
        # without a name in the folder: gone even if nova-compute is killed
        with tempfile.TemporaryFile(dir=folder, prefix="novadocker-") as file:
            packed = self._download(context, image_id, file)
            try:
                with archive.open_image(packed, self._architecture, folder) as image:
                    loaded = self._engine.load_image(archive.docker_archive(image))
            except ArchiveError as error:
                raise exception.InvalidImage(image_id=image_id, reason=str(error)) from error
        with contextlib.ExitStack() as undo:
            undo.callback(self._engine.remove_image, loaded)
            self._engine.tag_image(loaded, repository, tag)
            undo.pop_all()

    def _download(
        self, context: nova_context.RequestContext, image_id: str, file: IO[bytes]
    ) -> Region:
        algorithm, expected = _checksum(image_id, self._glance.get(context, image_id))
        self._glance.download(context, image_id, data=file)
        file.flush()
        downloaded = Region(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        # Nova verifies signatures; checksums are left to its client, which knows exceptions
        try:
            found = downloaded.digest(algorithm)
        except ValueError as error:
            raise exception.InvalidImage(
                image_id=image_id, reason=f"its checksum is of the unknown kind {algorithm}"
            ) from error
        if found != expected:
            raise exception.InvalidImage(
                image_id=image_id,
                reason=f"the {algorithm} checksum of the download is {found}, not {expected}",
            )
        return downloaded


def _check_format(image_meta: objects.ImageMeta) -> None:
    for name, wanted in _FORMATS.items():
        found = getattr(image_meta, name) if image_meta.obj_attr_is_set(name) else None
        if found != wanted:
            raise exception.InvalidImage(
                image_id=image_meta.id, reason=f"its {name} is {found}, it must be {wanted}"
            )


def _checksum(image_id: str, record: dict[str, Any]) -> tuple[str, str]:
    """Return the algorithm and the hex digits of the best checksum that Glance has."""
    if record.get("os_hash_algo") and record.get("os_hash_value"):
        return str(record["os_hash_algo"]), str(record["os_hash_value"])
    if not record.get("checksum"):
        raise exception.InvalidImage(image_id=image_id, reason="Glance has no checksum of it")
    return "md5", str(record["checksum"])
