# SPDX-License-Identifier: Apache-2.0
"""The part of the engine's client that the modules of this directory use."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from novadocker.virt.docker.model import Container, ContainerDetail, Storage, Terminal


class ContainerEngine(Protocol):
    """The engine's requests about containers; ``engine.client.Engine`` documents each of them.

    Each raises ``EngineUnavailable`` when the engine does not answer, ``EngineError`` when it
    refuses the request, and ``ContainerHangs`` when it answers all but this request.
    """

    def within(self, seconds: float) -> AbstractContextManager[None]:
        """Shorten the timeout of the calling thread's requests while a block runs."""

    def list_containers(self, label: str) -> Sequence[Container]:
        """Return all containers, in any state, that have the label."""

    def inspect_container(self, container: str) -> ContainerDetail:
        """Return the details of a container, or raise ContainerNotFound."""

    def inspect_storage(self, container: str) -> Storage:
        """Return the directories of a container's files, or raise ContainerNotFound."""

    def start_container(self, container: str) -> None:
        """Start a container."""

    def signal_container(self, container: str, signal: str) -> None:
        """Send a signal to the first process of a running container."""

    def open_terminal(self, container: str, command: Iterable[str]) -> Terminal:
        """Run a command as root on a new terminal in a running container."""

    def wait_container(self, container: str, timeout: float) -> int | None:
        """Return the exit status of a container, or None if it still runs after ``timeout`` s."""

    def pause_container(self, container: str) -> None:
        """Freeze all processes of a container."""

    def unpause_container(self, container: str) -> None:
        """Thaw all processes of a container."""

    def rename_container(self, container: str, name: str) -> None:
        """Rename a container."""

    def remove_container(self, container: str) -> None:
        """Delete a container. Does nothing if it does not exist."""

    def remove_unused_overlays(self) -> None:
        """Delete the overlays of deleted containers."""

    def read_console(self, container: str, most: int) -> bytes:
        """Return the last ``most`` bytes of a container's console log."""
