# SPDX-License-Identifier: Apache-2.0
"""The receiving end of a move: stages an instance's data on the destination host.

See ``protocol`` for the messages.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import IO

from novadocker import exception, naming, privsep
from novadocker.conf import CONF
from novadocker.linux import pipes
from novadocker.privsep.storage import staging
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.migration import moved_images, protocol, sessions
from novadocker.virt.docker.migration.transports import transport
from novadocker.virt.docker.migration.transports.choice import TRANSPORTS
from novadocker.virt.docker.model import EngineInfo

_CHUNK_BYTES = 1 << 20
_FAILURES = (
    protocol.ProtocolError,
    exception.EngineError,
    exception.EngineUnavailable,
    exception.ImageTooLarge,
    exception.PullCutOff,
    exception.RegistryFailed,
    pipes.StreamError,
    OSError,
    ValueError,
    *privsep.UNANSWERED,
)


LoadImage = Callable[[str, Callable[[int], Iterator[bytes]], int], None]
"""Loads the image of an id into the engine.

The second argument yields its archive, of at most so many bytes; the third is the number of bytes
that the image may have. See ``images.announced``.
"""

Allowed = Callable[[str], int]
"""Returns the bytes that an instance may bring to this host; 0 means no bound.

It raises ValueError if Nova does not move the instance to this host.
"""


class Receiver:
    """Executes the orders of one source host; ``transports.transport.Receiver``.

    :ivar engine: the engine of this host
    :ivar greeting: the instance and the move
    :ivar pipe: file descriptor of a pipe with the orders and what follows them
    :ivar most: bytes that the image, and that the other data, may have; 0 means no bound
    """

    def __init__(
        self,
        engine: Engine,
        load_image: LoadImage,
        info: EngineInfo,
        greeting: protocol.Greeting,
        pipe: int,
        most: int,
    ) -> None:
        self.engine = engine
        self._load_image = load_image
        self._info = info
        self.greeting = greeting
        self.pipe = pipe
        self.most = most

    def execute(self, order: protocol.Order) -> protocol.Message:
        """Execute an order and return the answer. Raises what the order's function raises."""
        _ORDERS[type(order)](self, order)
        return order.ANSWER()

    def has_image(self) -> bool:
        """Return True if the engine has the instance's image, which then stays for now."""
        return moved_images.keep_image(self.engine, self.greeting.image)

    def load_image(self) -> None:
        """Load the instance's image. Raises as ``transports.transport.Receiver.load_image``."""
        self._load_image(self.greeting.image, partial(protocol.read_frames, self.pipe), self.most)
        if not self.has_image():
            raise ValueError("its engine made another image of the archive")
        size = self.engine.inspect_image(self.greeting.image).size_bytes
        if self.most and size > self.most:
            # The image cache removes it.
            raise exception.ImageTooLarge(name=self.greeting.image, size=size, most=self.most)

    def stage(self, stream: tuple[int, int]) -> None:
        """Apply a stream. Raises as ``transports.transport.Receiver.stage``."""
        greeting = self.greeting
        staging.receive_folders(
            self._info.data_root, greeting.uuid, greeting.token, stream, self.most
        )

    def discard(self) -> None:
        """Delete the staged data of the instance. Does nothing if there is none."""
        staging.discard_folders(self._info.data_root, self.greeting.uuid)


def _commit(_receiver: transport.Receiver, _order: protocol.Commit) -> None:
    """Keep the staged data: the caller then does not discard it."""


_ORDERS: Mapping[type[protocol.Order], transport.Execute] = {
    protocol.Commit: _commit,
    **{order: execute for kind in TRANSPORTS for order, execute in kind.ORDERS.items()},
}


def serve(
    engine: Engine,
    load_image: LoadImage,
    allowed: Allowed,
    source: IO[bytes],
    answers: IO[bytes],
) -> bool:
    """Receive one instance; return True if the source committed the move.

    :param source: unbuffered, with the messages of the source host
    :param answers: unbuffered, for the answers to it
    """
    # Because the privileged process accepts only a pipe, and ssh may have given a socket.
    read, write = os.pipe()
    threading.Thread(target=_relay, args=(os.dup(source.fileno()), write), daemon=True).start()
    kept = False
    try:
        with ExitStack() as undo:
            undo.callback(os.close, read)
            greeting = protocol.decode(
                protocol.read_line(read, protocol.GREETING_SECONDS), protocol.Greeting
            )
            undo.enter_context(sessions.only(Path(CONF.instances_path), greeting.uuid))
            info = _check_host(engine, greeting.uuid)
            receiver = Receiver(engine, load_image, info, greeting, read, allowed(greeting.uuid))
            receiver.discard()
            with ExitStack() as unless_kept:
                unless_kept.callback(receiver.discard)
                _send(answers, protocol.Ready(receiver.has_image()))
                while not kept:
                    line = protocol.read_line(read, protocol.ORDER_SECONDS)
                    order = protocol.decode(line, *_ORDERS)
                    answer = receiver.execute(order)
                    if isinstance(order, protocol.Commit):
                        unless_kept.pop_all()
                        kept = True
                    _send(answers, answer)
    except _FAILURES as error:
        print(f"novadocker-receive: {error}", file=sys.stderr)
        # The source may be gone, so a failed write is ignored.
        with suppress(OSError):
            _send(answers, protocol.Refused(str(error)))
    return kept


def _check_host(engine: Engine, uuid: str) -> EngineInfo:
    """Return the facts of this host's engine.

    :raises ValueError: this host cannot receive the instance
    """
    info = engine.info()
    if info.storage_driver != "overlay2":
        raise ValueError(f"its engine's storage driver is {info.storage_driver}, not overlay2")
    if info.user_namespaces:
        raise ValueError("its engine remaps users (userns-remap)")
    try:
        engine.inspect_container(naming.container_name(uuid))
    except exception.ContainerNotFound:
        return info
    raise ValueError("it has a container of the server already")


def _relay(source: int, target: int) -> None:
    try:
        # The reader ends when it refuses the instance, and has answered why.
        with suppress(BrokenPipeError):
            while chunk := os.read(source, _CHUNK_BYTES):
                pipes.write_all(target, chunk)
    finally:
        os.close(source)
        os.close(target)


def _send(answers: IO[bytes], message: protocol.Message) -> None:
    answers.write(protocol.encode(message))
