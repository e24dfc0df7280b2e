# SPDX-License-Identifier: Apache-2.0
"""Which server is which container, from what the engine stores of it on disk."""

from pathlib import Path

from novadocker.exporter.labels import KnownLabels
from novadocker.recovery import dataroot

_LABEL_FLAVOR = "org.openstack.nova.flavor"
_LABEL_SCHEMA = "org.openstack.nova.schema"


class Identities:
    """The labels of each server, read once for each container.

    :param containers: the folder of the engine's data root with a folder for each container
    """

    def __init__(self, containers: Path) -> None:
        self._containers = containers
        self._known: dict[str, KnownLabels | None] = {}

    def find(self, container: str) -> KnownLabels | None:
        """Return the labels of a container's server; None if it is none.

        A file that can't be read yet, as a container is being made, is read again the next time.
        """
        if container not in self._known:
            try:
                path = self._containers / container / "config.v2.json"
                self._known[container] = _labels(dataroot.read_json(path))
            except dataroot.RecoveryError:
                return None
        return self._known[container]

    def keep(self, containers: set[str]) -> None:
        """Forget all but some containers."""
        for container in self._known.keys() - containers:
            del self._known[container]


def _labels(stored: dict[str, object]) -> KnownLabels | None:
    config = stored.get("Config")
    labels = config.get("Labels") if isinstance(config, dict) else None
    if not isinstance(labels, dict):
        return None
    uuid = str(labels.get(dataroot.LABEL_UUID, ""))
    # an image can bring any label into a foreign container: the name decides too
    if labels.get(_LABEL_SCHEMA) != "1" or stored.get("Name") != f"/nova-{uuid}":
        return None
    return KnownLabels(
        {
            "uuid": uuid,
            "name": str(labels.get(dataroot.LABEL_NAME, "")),
            "project": str(labels.get(dataroot.LABEL_PROJECT, "")),
            "flavor": str(labels.get(_LABEL_FLAVOR, "")),
        }
    )
