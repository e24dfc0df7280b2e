# SPDX-License-Identifier: Apache-2.0
"""Which server is which container, from what the engine stores of it on disk."""

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

# Go's time.RFC3339Nano in UTC
_TIME = re.compile(r"([0-9-]{10}T[0-9:]{8})(?:\.[0-9]+)?Z")
# the files that the engine keeps of a console: max-file in the driver's dialect.py
_CONSOLE_LOGS = ("-json.log", "-json.log.1")


@dataclass(frozen=True)
class Server:
    """A container that is a server.

    :ivar started_at: of its last start, in seconds since the epoch; None if it was never started
    """

    labels: KnownLabels
    started_at: float | None


@dataclass(frozen=True)
class _Known:
    """What was read of a file, and which file that was: the engine puts another in its place."""

    file: tuple[int, int]
    server: Server | None


class Identities:
    """The servers among the containers, read again when the engine writes them anew.

    :param containers: the folder of the engine's data root with a folder for each container
    """

    def __init__(self, containers: Path) -> None:
        self._containers = str(containers)
        self._known: dict[str, _Known] = {}

    def find(self, container: str) -> Server | None:
        """Return a container's server; None if it is none, or can't be read as it is being made."""
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
        """Return how large the files of a container's console are."""
        found = 0
        for name in _CONSOLE_LOGS:
            with suppress(FileNotFoundError):
                found += os.stat(f"{self._containers}/{container}/{container}{name}").st_size
        return found

    def keep(self, containers: set[str]) -> None:
        """Forget all but some containers."""
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
    # Go's zero time, of the year 1, is that of a container that never ran
    if not found or found[1].startswith("0001"):
        return None
    try:
        return datetime.fromisoformat(f"{found[1]}+00:00").timestamp()
    except ValueError:
        return None
