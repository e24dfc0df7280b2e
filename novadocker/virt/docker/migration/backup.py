# SPDX-License-Identifier: Apache-2.0
"""Copies of running servers in the registry, from which they are evacuated when their host dies.

A copy is an image of the server's own, tag ``copy``, by which the registry keeps its data: the
streams of ``trees``. The server's base image is beside it. The server is frozen for the difference
to what was read while it ran, so a copy is what a crash would have left.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from nova import exception as nova_exception
from oslo_log import log as logging

from novadocker import exception, naming
from novadocker.conf import CONF
from novadocker.linux import pipes
from novadocker.privsep.storage import staging
from novadocker.virt.docker.containers import freeze
from novadocker.virt.docker.containers.servers import ServerList
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.migration import transfer, transport
from novadocker.virt.docker.migration.registry_client import Blob, DataImage, Repository

LOG = logging.getLogger(__name__)

TAG = "copy"
_IMAGE_TAG = "copy-image"
_LOOK_SECONDS = 30.0


class Copies:
    """The copies of this host's servers.

    :param marks: a folder whose files tell when each server's last copy was begun
    """

    def __init__(self, engine: Engine, listing: ServerList, marks: Path) -> None:
        self._engine = engine
        self._listing = listing
        self._marks = marks
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="copies", daemon=True)

    def start(self) -> None:
        """Begin to take copies, if the operator wants any."""
        if wanted():
            self._marks.mkdir(parents=True, exist_ok=True)
            for name in self._engine.list_images(f"{CONF.docker.transfer_registry}/*/{TAG}"):
                # left by one that was cut off
                self._engine.remove_image(name)
            self._thread.start()

    def stop(self) -> None:
        """Begin no more copies."""
        self._ended.set()

    def take(self, instance_uuid: str) -> None:
        """Copy a server; the copy before is removed then.

        :raises NovaException: the engine or the registry refuses; the copy before is still there
        :raises OSError: its data can't be read
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
        move = transfer.Move(token, found.image_id, volumes, drive=False)
        now = repository.put_image(TAG, {"image": image, "move": move.to_text()}, blobs)
        if before is not None:
            # what did not change has the same digest
            _remove(repository, before, kept=now.blobs)
        seconds = time.monotonic() - begin
        LOG.info("Copied server %s in %.1f s", instance_uuid, seconds)

    def fetch(self, instance_uuid: str, data_root: str) -> transfer.Move | None:
        """Stage the last copy of a server here, with its image; None if there is none.

        :raises NovaException: the engine or the registry refuses; nothing is staged
        :raises OSError: this host has no room for it
        """
        if not wanted():
            return None
        repository = _repository(instance_uuid)
        copy = repository.find_image(TAG)
        if copy is None:
            return None
        move = transfer.read_move(copy.config["move"])
        assert move is not None
        transport.pull_image(self._engine, repository, copy.config["image"], move.image_id)
        with ExitStack() as undo:
            undo.callback(staging.discard_folders, data_root, instance_uuid)
            for layer in copy.layers:
                with pipes.written_with(repository.download(layer)) as stream:
                    staging.receive_folders(data_root, instance_uuid, move.token, stream)
            undo.pop_all()
        return move

    def remove(self, instance_uuid: str) -> None:
        """Remove the copy of a server that is deleted; absent is fine."""
        if not wanted():
            return
        with suppress(FileNotFoundError):
            (self._marks / instance_uuid).unlink()
        repository = _repository(instance_uuid)
        try:
            copy = repository.find_image(TAG)
            if copy is not None:
                _remove(repository, copy)
                repository.remove_image(copy.config["image"])
        except exception.RegistryFailed as error:
            LOG.warning("The copy of server %s is left: %s", instance_uuid, error)

    def _run(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            try:
                servers = self._listing.servers()
            except nova_exception.NovaException as error:
                LOG.warning("No server has a new copy: %s", error)
                continue
            for uuid, server in servers.items():
                if self._ended.is_set():
                    return
                if server.status != "running" or not self._is_due(uuid):
                    continue
                (self._marks / uuid).touch()
                try:
                    self.take(uuid)
                except (nova_exception.NovaException, OSError) as error:
                    LOG.warning("Server %s has no new copy: %s", uuid, error)

    def _is_due(self, instance_uuid: str) -> bool:
        try:
            last = (self._marks / instance_uuid).stat().st_mtime
        except FileNotFoundError:
            return True
        # a clock that was set back must not put it off for ever
        return not 0 <= time.time() - last < CONF.docker.copy_interval * 60


def _repository(instance_uuid: str) -> Repository:
    # not that of its moves, which remove the image
    return transport.repository(f"{instance_uuid}/{TAG}")


def wanted() -> bool:
    """Tell whether the operator wants copies."""
    return bool(CONF.docker.copy_interval and CONF.docker.transfer_registry)


def _upload(repository: Repository, token: str, folders: list[str], live: bool) -> Blob:
    def write(target: tuple[int, int]) -> int:
        return int(staging.send_folders(token, folders, target, live))

    with pipes.read_from(write) as (chunks, writing):
        blob = repository.upload(chunks)
        writing.result()
    return blob


def _remove(repository: Repository, copy: DataImage, kept: Sequence[str] = ()) -> None:
    repository.remove_image(copy.digest)
    for blob in copy.blobs:
        if blob not in kept:
            repository.remove_blob(blob)
