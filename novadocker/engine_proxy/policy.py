# SPDX-License-Identifier: Apache-2.0
"""What the operator permits, and what the proxy asks the engine about."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from novadocker import naming

NAME = re.compile(
    rf"nova-(?P<uuid>{naming.UUID.pattern})"
    rf"(?:{re.escape(naming.AWAY)})?(?:{re.escape(naming.ASIDE)})?"
)
"""The name of an instance's container; the suffixes are in the order that ``is_own`` removes."""


@dataclass(frozen=True)
class Policy:
    """The operator's settings; those of nova-compute must agree with them.

    :ivar runtime: name of the runtime shim in the engine's ``daemon.json``
    :ivar lxcfs_folder: mount point of lxcfs
    :ivar devices: paths of the host's devices that flavors may give to servers
    :ivar registry: registry and path through which servers move; empty for none
    """

    runtime: str = "novadocker"
    lxcfs_folder: str = "/var/lib/lxcfs"
    devices: frozenset[str] = frozenset()
    registry: str = ""

    def may_name(self, repository: str) -> bool:
        """Return True if the driver may give an image a name in this repository."""
        return repository.startswith(naming.IMAGES) or self.may_push(repository)

    def may_push(self, repository: str) -> bool:
        """Return True if the driver may send images of this repository to its registry."""
        return bool(self.registry) and repository.startswith(f"{self.registry}/")


class Host(Protocol):
    """The engine's answers about its objects.

    Each function raises ``Answered`` if the engine answers with an error.
    """

    def user_namespaces(self) -> bool:
        """Return True if containers have their own users (``userns-remap``)."""

    def server(self, container: str) -> str:
        """Return the UUID of the instance that a container belongs to.

        :param container: name or id
        :raises Refused: it belongs to no instance
        """

    def container_of(self, execution: str) -> str:
        """Return the id of the container in which an exec runs."""

    def directories(self, container: str) -> tuple[list[str], set[str]]:
        """Return the directories of a container's files.

        :returns: the directories of the storage driver overlay2 (``UpperDir``, ``WorkDir``, then
            each of ``LowerDir``), empty with other drivers; and those of the volumes
        """

    def image_names(self, image: str) -> list[str]:
        """Return the names of an image."""

    def volume_labels(self, volume: str) -> Mapping[str, str]:
        """Return the labels of a volume."""


class Answered(Exception):
    """An error with which the engine answers a question of the proxy; the client gets it.

    :param status: of HTTP
    :param body: a JSON text
    """

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
