# SPDX-License-Identifier: Apache-2.0
"""What a data root tells of its servers; nothing is written, nothing is believed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from novadocker import naming

DRIVERS = ("overlay2", "btrfs", "vfs", "devicemapper")

_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LAYER = re.compile(r"[0-9a-f]{64}(-init)?")
_VOLUME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_LARGEST_FILE = 16 << 20
# what the engine calls its data root with userns-remap: the ids that root has there
_REMAPPED = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})")


class RecoveryError(Exception):
    """Something can't be recovered; the text says what and why."""


@dataclass(frozen=True)
class Volume:
    """A volume of a container: data that is not in its own file system."""

    name: str
    destination: PurePosixPath


@dataclass(frozen=True)
class Server:
    """A container of the data root.

    :ivar uuid: of the instance; empty where the metadata does not tell any more
    :ivar own: whether it is the instance's own; one that stands in for it during a rescue is not,
        nor is any other that has only its labels
    :ivar driver: the engine's storage driver
    :ivar image: digest of the image it was made from, empty where unknown
    :ivar damage: what of its metadata is unreadable, empty if all is well
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

    :param thin_pool: of the storage driver devicemapper, where it is not in files of the data root
    :raises RecoveryError: that is no data root
    """

    def __init__(self, path: Path, thin_pool: Path | None = None) -> None:
        self.path = path
        self.thin_pool = thin_pool
        if not (path / "containers").is_dir():
            raise RecoveryError(f"{path} is no data root of the Docker Engine: no containers in it")

    @property
    def first_ids(self) -> tuple[int, int]:
        """The user and the group on the disk that are root in a server: not 0 with userns-remap."""
        found = _REMAPPED.fullmatch(self.path.name)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def servers(self) -> list[Server]:
        """Return all containers that are servers of Nova, or too damaged to tell."""
        return sorted(self._containers(), key=lambda server: (server.uuid, server.container))

    def find(self, wanted: str) -> Server:
        """Return a server by instance uuid, instance name or (the start of) its container id.

        What is not the instance's own is found by its container id alone.

        :raises RecoveryError: there is none, or more than one
        """
        found = [
            server
            for server in self.servers()
            if (server.own and wanted in (server.uuid, server.name))
            or (len(wanted) >= 12 and server.container.startswith(wanted))
        ]
        if len(found) != 1:
            raise RecoveryError(f"{len(found)} servers are called {wanted!r}; list shows all")
        return found[0]

    def unclaimed_volumes(self) -> list[str]:
        """Return the volumes that no container names: those of a damaged one are among them."""
        claimed = set()
        for folder in (self.path / "containers").iterdir():
            with suppress(RecoveryError, KeyError, TypeError, AttributeError):
                mounts = read_json(folder / "config.v2.json").get("MountPoints") or {}
                claimed |= {mount["Name"] for mount in mounts.values()}
        return sorted(
            folder.parent.name
            for folder in (self.path / "volumes").glob("*/_data")
            if folder.parent.name not in claimed
        )

    def image_config(self, server: Server) -> dict[str, Any]:
        """Return the configuration of the image a server was made from.

        :raises RecoveryError: it is not there or damaged
        """
        digest = _DIGEST.fullmatch(server.image)
        if not digest:
            raise RecoveryError(f"the image of container {server.container} is unknown")
        path = self.path / "image" / server.driver / "imagedb" / "content" / "sha256" / digest[1]
        found = read_json(path)
        config = found.get("config") or {}
        if (
            not all(isinstance(found.get(name), str) for name in ("architecture", "os"))
            or not isinstance(config, dict)
            or not isinstance(config.get("Labels") or {}, dict)
        ):
            raise RecoveryError(f"{path} is damaged: it is no image's configuration")
        return found

    def volume_folder(self, volume: Volume) -> Path:
        """Return where a volume's data lies."""
        return self.path / "volumes" / volume.name / "_data"

    def layer(self, server: Server) -> str:
        """Return the storage driver's name of a container's own layer.

        :raises RecoveryError: it is not recorded
        """
        mounts = self.path / "image" / server.driver / "layerdb" / "mounts" / server.container
        layer = read_text(mounts / "mount-id").strip()
        if not _LAYER.fullmatch(layer):
            raise RecoveryError(f"{mounts / 'mount-id'} names no layer")
        return layer

    def _containers(self) -> Iterator[Server]:
        for folder in (self.path / "containers").iterdir():
            if not _CONTAINER_ID.fullmatch(folder.name):
                continue
            try:
                stored = read_json(folder / "config.v2.json")
                server = parse(folder.name, stored)
            except (RecoveryError, KeyError, TypeError, AttributeError, ValueError) as error:
                yield self._salvaged(folder, error)
            else:
                if server.uuid:
                    yield server

    def _salvaged(self, folder: Path, error: Exception) -> Server:
        """Return what can still be told of a container whose metadata is damaged."""
        try:
            text = read_text(folder / "config.v2.json")
        except RecoveryError:
            text = ""

        def label(name: str) -> str:
            found = re.search(rf'"{re.escape(name)}":"([^"\\]*)"', text)
            return found[1] if found else ""

        image = re.search(r'"Image":"(sha256:[0-9a-f]{64})"', text)
        uuid = label(naming.LABEL_UUID)
        return Server(
            container=folder.name,
            uuid=uuid if _UUID.fullmatch(uuid) else "",
            name=label(naming.LABEL_NAME),
            project=label(naming.LABEL_PROJECT),
            flavor=label(naming.LABEL_FLAVOR),
            host=label(naming.LABEL_HOST),
            created="",
            # its name lies near the end of the file
            own=label(naming.LABEL_RESCUE) != "1",
            driver=self._driver_of(folder.name),
            image=image[1] if image else "",
            config={},
            volumes=(),
            damage=f"its metadata is damaged, volumes are unknown: {error}",
        )

    def _driver_of(self, container: str) -> str:
        for driver in DRIVERS:
            if (self.path / "image" / driver / "layerdb" / "mounts" / container).is_dir():
                return driver
        return ""


def parse(container: str, stored: Mapping[str, Any]) -> Server:
    """Return the server that the engine's metadata of a container describes.

    :raises RecoveryError: a value can't be what the engine wrote
    """
    labels = stored["Config"].get("Labels") or {}
    uuid = labels.get(naming.LABEL_UUID, "")
    return Server(
        container=container,
        uuid=uuid if _UUID.fullmatch(uuid) else "",
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
    """Return a file of metadata.

    :raises RecoveryError: it is missing, unreadable or too large to be one
    """
    try:
        with path.open("rb") as source:
            content = source.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise RecoveryError(f"{path}: {error.strerror}") from error
    if len(content) > _LARGEST_FILE:
        raise RecoveryError(f"{path} is larger than {_LARGEST_FILE} bytes")
    return content.decode(errors="replace")


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object of metadata.

    :raises RecoveryError: the file is none
    """
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise RecoveryError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise RecoveryError(f"{path} is damaged: it holds no object")
    return found


def volume(name: str, place: str) -> Volume:
    """Return a volume of a server.

    :raises RecoveryError: there can't be one of that name or at that place
    """
    destination = PurePosixPath(place)
    if not _VOLUME.fullmatch(name) or not destination.is_absolute():
        raise RecoveryError(f"a volume {name!r} at {place!r} can't be")
    return Volume(name, destination)
