# SPDX-License-Identifier: Apache-2.0
"""Reading of servers from an engine's data root. Writes nothing and verifies all that it reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from novadocker import engine_paths, naming

DRIVERS = ("overlay2", "btrfs", "vfs", "devicemapper")

_LAYER = re.compile(rf"{naming.CONTAINER_ID.pattern}(-init)?")
_VOLUME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")
_LARGEST_FILE = 16 << 20
# With userns-remap the name of the data root has the host's ids of the containers' root: UID.GID.
_REMAPPED = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})")


class RecoveryError(Exception):
    """An object can't be recovered; the text names the object and the cause."""


@dataclass(frozen=True)
class Volume:
    """A volume of a container, which holds data outside of the container's own file system."""

    name: str
    destination: PurePosixPath


@dataclass(frozen=True)
class Server:
    """A container in the data root.

    :ivar uuid: UUID of the instance; empty if the damaged metadata lacks it
    :ivar own: whether it is the instance's own container; a rescue container is not, nor is another
        container with the instance's labels
    :ivar driver: storage driver of the engine
    :ivar image: id of the image that it was created from; empty if unknown
    :ivar damage: description of the damage to its metadata; empty if the metadata is complete
    """

    container: str
    uuid: str
    name: str
    project: str
    flavor: str
    host: str
    created: str
    own: bool
    driver: str
    image: str
    config: Mapping[str, Any]
    volumes: tuple[Volume, ...]
    damage: str = ""


class DataRoot:
    """The engine's data root, or a copy of it, at ``path``.

    :param thin_pool: pool of the storage driver devicemapper if it is not in files of the data root
    :raises RecoveryError: ``path`` is not a data root
    """

    def __init__(self, path: Path, thin_pool: Path | None = None) -> None:
        self.path = path
        self.thin_pool = thin_pool
        if not engine_paths.containers(path).is_dir():
            raise RecoveryError(
                f"{path} is not a data root of the Docker Engine: it has no directory containers"
            )

    @property
    def first_ids(self) -> tuple[int, int]:
        """The ids on the disk of a server's root user and group; not 0 with userns-remap."""
        found = _REMAPPED.fullmatch(self.path.name)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def servers(self) -> list[Server]:
        """Return all containers of instances, and those with damaged metadata."""
        return sorted(self._containers(), key=lambda server: (server.uuid, server.container))

    def find(self, wanted: str) -> Server:
        """Return a server by instance UUID, instance name or (the start of) its container id.

        A container that is not the instance's own is found only by its container id.

        :raises RecoveryError: no server or more than one matches
        """
        found = [
            server
            for server in self.servers()
            if (server.own and wanted in (server.uuid, server.name))
            or (len(wanted) >= 12 and server.container.startswith(wanted))
        ]
        if len(found) != 1:
            raise RecoveryError(
                f"{len(found)} servers match {wanted!r} instead of one; list shows all servers"
            )
        return found[0]

    def unclaimed_volumes(self) -> list[str]:
        """Return the volumes that no metadata names; they include those of damaged containers."""
        claimed = set()
        for folder in engine_paths.containers(self.path).iterdir():
            with suppress(RecoveryError, KeyError, TypeError, AttributeError):
                mounts = (
                    read_json(engine_paths.container_config(self.path, folder.name)).get(
                        "MountPoints"
                    )
                    or {}
                )
                claimed |= {mount["Name"] for mount in mounts.values()}
        return sorted(
            folder.parent.name
            for folder in engine_paths.volumes(self.path).glob("*/_data")
            if folder.parent.name not in claimed
        )

    def image_config(self, server: Server) -> dict[str, Any]:
        """Return the configuration of the image that a server was created from.

        :raises RecoveryError: the configuration is missing or damaged
        """
        if not naming.DIGEST.fullmatch(server.image):
            raise RecoveryError(f"the image of container {server.container} is unknown")
        digest = server.image.removeprefix("sha256:")
        path = engine_paths.image_config(self.path, server.driver, digest)
        found = read_json(path)
        config = found.get("config") or {}
        if (
            not all(isinstance(found.get(name), str) for name in ("architecture", "os"))
            or not isinstance(config, dict)
            or not isinstance(config.get("Labels") or {}, dict)
        ):
            raise RecoveryError(f"{path} is damaged: it is not the configuration of an image")
        return found

    def volume_folder(self, volume: Volume) -> Path:
        """Return the directory with a volume's data."""
        return engine_paths.volume_files(self.path, volume.name)

    def layer(self, server: Server) -> str:
        """Return the storage driver's name of a container's own layer.

        :raises RecoveryError: the record is missing or malformed
        """
        mounts = engine_paths.container_layer_record(self.path, server.driver, server.container)
        layer = read_text(mounts / "mount-id").strip()
        if not _LAYER.fullmatch(layer):
            raise RecoveryError(f"{mounts / 'mount-id'} does not name a layer")
        return layer

    def _containers(self) -> Iterator[Server]:
        for folder in engine_paths.containers(self.path).iterdir():
            if not naming.CONTAINER_ID.fullmatch(folder.name):
                continue
            try:
                stored = read_json(engine_paths.container_config(self.path, folder.name))
                server = parse(folder.name, stored)
            except (RecoveryError, KeyError, TypeError, AttributeError, ValueError) as error:
                yield self._salvaged(folder, error)
            else:
                if server.uuid:
                    yield server

    def _salvaged(self, folder: Path, error: Exception) -> Server:
        """Return the readable parts of a container's damaged metadata."""
        try:
            text = read_text(engine_paths.container_config(self.path, folder.name))
        except RecoveryError:
            text = ""

        def label(name: str) -> str:
            found = re.search(rf'"{re.escape(name)}":"([^"\\]*)"', text)
            return found[1] if found else ""

        image = re.search(rf'"Image":"({naming.DIGEST.pattern})"', text)
        uuid = label(naming.LABEL_UUID)
        return Server(
            container=folder.name,
            uuid=uuid if naming.UUID.fullmatch(uuid) else "",
            name=label(naming.LABEL_NAME),
            project=label(naming.LABEL_PROJECT),
            flavor=label(naming.LABEL_FLAVOR),
            host=label(naming.LABEL_HOST),
            created="",
            # The container's name is near the end of the file, which is often lost, so only the
            # label counts.
            own=label(naming.LABEL_RESCUE) != "1",
            driver=self._driver_of(folder.name),
            image=image[1] if image else "",
            config={},
            volumes=(),
            damage=f"the container's metadata is damaged, so its volumes are unknown: {error}",
        )

    def _driver_of(self, container: str) -> str:
        for driver in DRIVERS:
            if engine_paths.container_layer_record(self.path, driver, container).is_dir():
                return driver
        return ""


def parse(container: str, stored: Mapping[str, Any]) -> Server:
    """Return the server that the engine's metadata of a container describes.

    :raises RecoveryError: a value is malformed
    """
    labels = stored["Config"].get("Labels") or {}
    uuid = labels.get(naming.LABEL_UUID, "")
    return Server(
        container=container,
        uuid=uuid if naming.UUID.fullmatch(uuid) else "",
        name=labels.get(naming.LABEL_NAME, ""),
        project=labels.get(naming.LABEL_PROJECT, ""),
        flavor=labels.get(naming.LABEL_FLAVOR, ""),
        host=labels.get(naming.LABEL_HOST, ""),
        created=stored.get("Created", ""),
        own=naming.is_own(stored["Name"].lstrip("/"), labels),
        driver=stored["Driver"],
        image=stored["Image"],
        config=stored["Config"],
        volumes=tuple(
            volume(mount["Name"], mount["Destination"])
            for mount in (stored.get("MountPoints") or {}).values()
            if mount["Type"] == "volume"
        ),
    )


def read_text(path: Path) -> str:
    """Return the content of a file of metadata.

    :raises RecoveryError: the file is missing, unreadable or too large
    """
    try:
        with path.open("rb") as source:
            content = source.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise RecoveryError(f"{path} can't be read: {error.strerror}") from error
    if len(content) > _LARGEST_FILE:
        raise RecoveryError(f"{path} is larger than {_LARGEST_FILE} bytes")
    return content.decode(errors="replace")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of metadata.

    :raises RecoveryError: the file can't be read or is not a JSON object
    """
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise RecoveryError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise RecoveryError(f"{path} is damaged: it is not a JSON object")
    return found


def volume(name: str, place: str) -> Volume:
    """Return the volume of that name at the path ``place`` in a server.

    :raises RecoveryError: the name is malformed, or the path is not absolute
    """
    destination = PurePosixPath(place)
    if not _VOLUME.fullmatch(name) or not destination.is_absolute():
        raise RecoveryError(f"volume {name!r} at {place!r} has a malformed name or path")
    return Volume(name, destination)
