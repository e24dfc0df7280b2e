# SPDX-License-Identifier: Apache-2.0
"""The transport through the pipe of the command that connects the hosts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from novadocker.linux.pipes import Write
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.migration import protocol
from novadocker.virt.docker.migration.destination import Destination
from novadocker.virt.docker.migration.transports.transport import Execute, Receiver


@dataclass(frozen=True)
class Load(protocol.Signal, protocol.Order):
    """Order to load the instance's image; frames with its archive follow."""

    KEY = "load"
    ANSWER = protocol.Loaded


@dataclass(frozen=True)
class Apply(protocol.Signal, protocol.Order):
    """Order to apply the stream that follows to the staged directories."""

    KEY = "apply"
    ANSWER = protocol.Applied


def _load(receiver: Receiver, _order: Load) -> None:
    """Load the instance's image. Raises as ``Receiver.load_image``."""
    receiver.load_image()


def _apply(receiver: Receiver, _order: Apply) -> None:
    """Apply the stream that follows. Raises as ``Receiver.stage``."""
    receiver.stage((os.getpid(), receiver.pipe))


class Direct:
    """Sends everything through the pipe of the command that speaks for the destination."""

    ORDERS: ClassVar[Mapping[type[protocol.Order], Execute]] = {Load: _load, Apply: _apply}

    def __init__(self, engine: Engine, _instance_uuid: str) -> None:
        self._engine = engine

    @classmethod
    def is_configured(cls) -> bool:
        """Return True: this transport needs no option."""
        return True

    @classmethod
    def clear_leftovers(cls, _engine: Engine) -> None:
        """Do nothing: a pipe keeps nothing."""

    def send_image(self, destination: Destination, image_id: str) -> None:
        """Send the image over the pipe. Raises as ``Transport.send_image``."""
        order = Load()
        destination.send(order)
        for chunk in self._engine.save_image(image_id):
            destination.send(protocol.Frame(len(chunk)))
            destination.write(chunk)
        destination.send(protocol.Frame(0))
        destination.expect_answer(order)

    def send_stream(self, destination: Destination, write: Write) -> int:
        """Send the stream over the pipe. Raises as ``Transport.send_stream``."""
        order = Apply()
        destination.send(order)
        try:
            sent = write((os.getpid(), destination.fileno()))
        except OSError as error:
            raise destination.failure(error) from error
        destination.expect_answer(order)
        return sent

    def clear(self) -> None:
        """Do nothing: a pipe keeps nothing."""
