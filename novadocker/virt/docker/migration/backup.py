# SPDX-License-Identifier: Apache-2.0
"""Backups of running instances in the registry, for their evacuation when this host fails.

The options and the documentation call a backup a copy. It is an image with the tag ``copy``, by
which the registry keeps the streams of ``tree_stream``; the instance's base image is beside it. The
instance is frozen while the changes since the first stream are sent: a backup is crash-consistent.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nova import exception as nova_exception
from oslo_log import log as logging

from novadocker import exception, naming, privsep
from novadocker.conf import CONF
from novadocker.linux import pipes
from novadocker.linux.threads import Failures
from novadocker.privsep.guest import root_volumes
from novadocker.privsep.storage import staging
from novadocker.virt.docker.containers import freeze
from novadocker.virt.docker.containers.servers import ServerList
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.migration import moved_images, transfer
from novadocker.virt.docker.migration.disk_info import Move, read_move
from novadocker.virt.docker.migration.transports import registry
from novadocker.virt.docker.model import Container

if TYPE_CHECKING:
    from novadocker.virt.docker.migration.registry_client import Blob, DataImage, Repository

LOG = logging.getLogger(__name__)

TAG = "copy"
_IMAGE_TAG = "copy-image"
_LOOK_SECONDS = 30.0
_FAILURES = (nova_exception.NovaException, OSError, *privsep.UNANSWERED)


class Backups:
    """The backups of this host's instances.

    :param marks: directory of empty files, whose times show when each instance's last backup began
    """

    def __init__(self, engine: Engine, listing: ServerList, marks: Path) -> None:
        self._engine = engine
        self._listing = listing
        self._marks = marks
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="copies", daemon=True)
        # Only the thread uses these three.
        self._turns = Failures("Failed to run the thread", _FAILURES)
        self._looks = Failures("Failed to read the time of the last copy of server", _FAILURES)
        self._failures = Failures("Failed to copy server", _FAILURES)

    def start(self) -> None:
        """Start the thread that creates backups, if the operator configured them."""
        if wanted():
            self._marks.mkdir(parents=True, exist_ok=True)
            for name in self._engine.list_images(f"{CONF.docker.transfer_registry}/*/{TAG}"):
                # A backup that was cut off leaves its image's name in the engine.
                self._engine.remove_image(name)
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread after the backup that it creates. Does not wait for it."""
        self._ended.set()

    def create(self, instance_uuid: str) -> None:
        """Create a backup of an instance, then delete its previous one.

        :raises NovaException: the engine or the registry refuses; the previous backup remains
        :raises OSError: the instance's data cannot be read
        """
        found = self._engine.inspect_container(naming.container_name(instance_uuid))
        storage = self._engine.inspect_storage(found.id)
        token = secrets.token_hex(16)
        volumes = sorted(storage.volumes)
        folders = [storage.upper, *(storage.volumes[path] for path in volumes)]
        repository = _repository(instance_uuid)
        before = repository.find_image(TAG)
        begin = time.monotonic()
        try:
            blobs = [_upload(repository, token, folders, live=True)]
            with freeze.frozen(self._engine, found, Path(CONF.instances_path)):
                blobs.append(_upload(repository, token, folders, live=False))
        finally:
            staging.forget_folders(token)
        name = f"{repository.name}:{_IMAGE_TAG}"
        self._engine.tag_image(found.image_id, repository.name, _IMAGE_TAG)
        try:
            image = self._engine.push_image(
                repository.name,
                _IMAGE_TAG,
                repository.registry,
                CONF.docker.registry_credentials_file,
            )
        finally:
            self._engine.remove_image(name)
        move = Move(token, found.image_id, volumes, drive=False)
        now = repository.put_image(TAG, {"image": image, "move": move.to_text()}, blobs)
        if before is not None:
            # Data that did not change has the same digest in both.
            _remove(repository, before, kept=now.blobs)
        seconds = time.monotonic() - begin
        LOG.info(
            "Copied the instance to the registry in %.1f s", seconds, instance_uuid=instance_uuid
        )

    def fetch(self, instance_uuid: str, data_root: str) -> Move | None:
        """Stage the last backup of an instance, and pull its image; return None if it has none.

        :raises NovaException: the engine or the registry refuses; nothing is staged
        :raises OSError: this host has no room for the data
        """
        if not wanted():
            return None
        repository = _repository(instance_uuid)
        copy = repository.find_image(TAG)
        if copy is None:
            return None
        image, move = _read(repository, copy)
        moved_images.pull_image(self._engine, repository, image, move.image_id)
        with ExitStack() as undo:
            undo.callback(staging.discard_folders, data_root, instance_uuid)
            for layer in copy.layers:
                with pipes.written_with(repository.download(layer)) as stream:
                    staging.receive_folders(data_root, instance_uuid, move.token, stream, 0)
            undo.pop_all()
        return move

    def remove(self, instance_uuid: str) -> None:
        """Delete the backup of an instance that is deleted. Does nothing if it has none."""
        if not wanted():
            return
        with suppress(FileNotFoundError):
            (self._marks / instance_uuid).unlink()
        repository = _repository(instance_uuid)
        try:
            copy = repository.find_image(TAG)
            if copy is not None:
                _remove(repository, copy)
                repository.remove_image(_read(repository, copy)[0])
        except exception.RegistryFailed as error:
            LOG.warning(
                "Failed to delete the copy of the instance: %s", error, instance_uuid=instance_uuid
            )

    def _run(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            # ``host.service_status`` logs that the engine does not answer.
            with self._turns.of("copies"), suppress(exception.EngineUnavailable):
                self._create_due(self._listing.servers())

    def _create_due(self, servers: Mapping[str, Container]) -> None:
        self._looks.keep(servers)
        self._failures.keep(servers)
        running = [
            uuid
            for uuid, server in servers.items()
            # The volume that an instance boots from outlives its host.
            if server.status == "running" and not root_volumes.boots_from_volume(uuid)
        ]
        for uuid in running:
            if self._ended.is_set():
                return
            is_due = False
            with self._looks.of(uuid):
                is_due = self._is_due(uuid)
            if is_due:
                with self._failures.of(uuid):
                    (self._marks / uuid).touch()
                    self.create(uuid)

    def _is_due(self, instance_uuid: str) -> bool:
        try:
            last = (self._marks / instance_uuid).stat().st_mtime
        except FileNotFoundError:
            return True
        # If the clock was set back, the time of the last backup may lie far in the future.
        return not 0 <= time.time() - last < CONF.docker.copy_interval * 60


def wanted() -> bool:
    """Return True if the operator configured backups."""
    return bool(CONF.docker.copy_interval and CONF.docker.transfer_registry)


def _repository(instance_uuid: str) -> Repository:
    # Not the repository of the instance's moves, because a move deletes the image in it.
    return registry.repository(f"{instance_uuid}/{TAG}")


def _read(repository: Repository, copy: DataImage) -> tuple[str, Move]:
    """Return the digest of a backup's base image, and what was copied.

    :raises RegistryFailed: the registry has something else under the backup's tag
    """
    image, text = copy.config.get("image"), copy.config.get("move")
    move = read_move(text) if isinstance(text, str) else None
    if move is None or not isinstance(image, str) or not naming.DIGEST.fullmatch(image):
        raise exception.RegistryFailed(
            registry=repository.registry, reason=f"its image with the tag {TAG} is not a copy"
        )
    return image, move


def _upload(repository: Repository, token: str, folders: list[str], live: bool) -> Blob:
    with pipes.read_from(transfer.stream_writer(token, folders, live)) as (chunks, writing):
        blob = repository.upload(chunks)
        writing.result()
    return blob


def _remove(repository: Repository, copy: DataImage, kept: Sequence[str] = ()) -> None:
    repository.remove_image(copy.digest)
    for blob in copy.blobs:
        if blob not in kept:
            repository.remove_blob(blob)
