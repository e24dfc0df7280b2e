# SPDX-License-Identifier: Apache-2.0
"""The interface of a transport: the part of the source host, and that of the destination host.

With each transport the destination confirms all that it received, so the source has every failure
before it gives the instance up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from novadocker.linux.pipes import Write
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.migration import protocol
from novadocker.virt.docker.migration.destination import Destination


class Transport(Protocol):
    """The transport of one instance's move, on the source host."""

    def send_image(self, destination: Destination, image_id: str) -> None:
        """Send an image that the destination lacks.

        :raises NovaException: the image cannot be sent, or the destination's engine refuses it
        """

    def send_stream(self, destination: Destination, write: Write) -> int:
        """Send a stream and have the destination apply it; return its bytes of content.

        :raises NovaException: the stream cannot be sent or applied
        :raises OSError: the data cannot be read
        """

    def clear(self) -> None:
        """Delete what this move left between the hosts. Idempotent."""


class Receiver(Protocol):
    """The move of one instance, on the destination host; ``receiver.Receiver``."""

    @property
    def engine(self) -> Engine:
        """Return the engine of this host."""

    @property
    def greeting(self) -> protocol.Greeting:
        """Return the first message of the source: the instance and its image."""

    @property
    def most(self) -> int:
        """Return the bytes that the image, and that the other data, may have; 0 for no bound."""

    @property
    def pipe(self) -> int:
        """Return the file descriptor of a pipe with the data that follows an order."""

    def load_image(self) -> None:
        """Load the instance's image from the archive in the frames that follow.

        :raises ValueError: the archive is malformed, or has another image
        :raises EngineError: the engine refuses the image
        :raises ProtocolError: the archive does not arrive whole
        """

    def stage(self, stream: tuple[int, int]) -> None:
        """Apply a stream to the staged directories, and sync the disk.

        :param stream: a process id, and the process's file descriptor of a pipe
        :raises StreamError: the stream is malformed, or ends too early
        """


Execute = Callable[[Receiver, Any], None]
"""Executes an order on the destination host; an error refuses the move."""


class Kind(Protocol):
    """A class of transports.

    :cvar ORDERS: the orders that only this transport sends, and the function that executes each
    """

    ORDERS: Mapping[type[protocol.Order], Execute]

    def __call__(self, engine: Engine, instance_uuid: str, /) -> Transport:
        """Return the transport of an instance's move."""

    def is_configured(self) -> bool:
        """Return True if the operator's options choose this transport."""

    def clear_leftovers(self, engine: Engine, /) -> None:
        """Delete what moves left between the hosts because nova-compute died. Idempotent."""
