# SPDX-License-Identifier: Apache-2.0
"""The mapping of containers to instances, read from the engine's data root."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from novadocker import naming
from novadocker.exporter.labels import KnownLabels
from novadocker.recovery import dataroot
from novadocker.state_files import console_log

# Go writes time.RFC3339Nano in UTC.
_TIME = re.compile(r"([0-9-]{10}T[0-9:]{8})(?:\.[0-9]+)?Z")


@dataclass(frozen=True)
class Server:
    """An instance that has a container.

    :ivar started_at: last start in seconds since the epoch; None if it was never started
    """

    labels: KnownLabels
    started_at: float | None


@dataclass(frozen=True)
class _Known:
    """The instance in a file, and the inode and time of the file, which the engine replaces."""

    file: tuple[int, int]
    server: Server | None


class Identities:
    """The instances by container id; a container's file is read again when the engine replaced it.

    :param containers: the directory ``containers`` of the engine's data root
    """

    def __init__(self, containers: Path) -> None:
        self._containers = str(containers)
        self._known: dict[str, _Known] = {}

    def find(self, container: str) -> Server | None:
        """Return a container's instance.

        None if the container belongs to no instance, or if its file is incomplete because the
        container is being created.
        """
        path = f"{self._containers}/{container}/config.v2.json"
        try:
            status = os.stat(path)
            file = (status.st_ino, status.st_mtime_ns)
            known = self._known.get(container)
            if known is None or known.file != file:
                known = _Known(file, _server(dataroot.read_json(Path(path))))
                self._known[container] = known
        except (FileNotFoundError, dataroot.RecoveryError):
            return None
        return known.server

    def console_bytes(self, container: str) -> int:
        """Return the size of the log files of a container's console."""
        found = 0
        for path in console_log.paths(self._containers, container):
            with suppress(FileNotFoundError):
                found += os.stat(path).st_size
        return found

    def keep(self, containers: set[str]) -> None:
        """Drop the cache of all containers but these."""
        for container in self._known.keys() - containers:
            del self._known[container]


def _server(stored: dict[str, Any]) -> Server | None:
    config = stored.get("Config")
    labels = config.get("Labels") if isinstance(config, dict) else None
    if not isinstance(labels, dict):
        return None
    if not naming.owned(str(stored.get("Name", "")).removeprefix("/"), labels):
        return None
    known = KnownLabels(
        {
            "uuid": str(labels.get(naming.LABEL_UUID, "")),
            "name": str(labels.get(naming.LABEL_NAME, "")),
            "project": str(labels.get(naming.LABEL_PROJECT, "")),
            "flavor": str(labels.get(naming.LABEL_FLAVOR, "")),
        }
    )
    return Server(known, _started_at(stored.get("State")))


def _started_at(state: Any) -> float | None:
    found = _TIME.fullmatch(str(state.get("StartedAt"))) if isinstance(state, dict) else None
    # A container that never ran has Go's zero time, in the year 1.
    if not found or found[1].startswith("0001"):
        return None
    try:
        return datetime.fromisoformat(f"{found[1]}+00:00").timestamp()
    except ValueError:
        return None
