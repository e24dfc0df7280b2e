# SPDX-License-Identifier: Apache-2.0
"""The receiving end of a move: stages an instance's data on the destination host.

See ``protocol`` for the messages. Imports nothing that needs Nova's objects, because their import
takes seconds of an instance's downtime.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import IO, Any

from oslo_privsep import comm, daemon

from novadocker import exception, naming
from novadocker.linux import pipes
from novadocker.privsep.storage import staging
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.migration import protocol, transport
from novadocker.virt.docker.migration.registry_client import Repository
from novadocker.virt.docker.model import EngineInfo

_CHUNK_BYTES = 1 << 20
_FAILURES = (
    protocol.ProtocolError,
    exception.EngineError,
    exception.EngineUnavailable,
    exception.RegistryFailed,
    daemon.FailedToDropPrivileges,
    comm.PrivsepTimeout,
    pipes.StreamError,
    OSError,
    ValueError,
)


LoadImage = Callable[[str, Callable[[int], Iterator[bytes]]], None]
"""Loads the image of an id into the engine.

The second argument yields its archive, of at most so many bytes; see ``images.announced``.
"""


class Receiver:
    """Executes the orders of one source host, a method each.

    :param greeting: the instance and the move
    :param pipe: file descriptor of a pipe with the orders and what follows them
    """

    def __init__(
        self,
        engine: Engine,
        load_image: LoadImage,
        info: EngineInfo,
        greeting: protocol.Greeting,
        pipe: int,
    ) -> None:
        self._engine = engine
        self._load_image = load_image
        self._info = info
        self._greeting = greeting
        self._pipe = pipe
        self._methods: Mapping[type[protocol.Order], Callable[[Any], None]] = {
            protocol.Load: self.load,
            protocol.Pull: self.pull,
            protocol.Fetch: self.fetch,
            protocol.Apply: self.apply,
            protocol.Commit: self.commit,
        }

    def execute(self, order: protocol.Order) -> protocol.Message:
        """Execute an order and return the answer. Raises what its method raises."""
        self._methods[type(order)](order)
        return order.ANSWER()

    def has_image(self) -> bool:
        """Return True if the engine has the instance's image, which then stays for now."""
        return transport.keep_image(self._engine, self._greeting.image)

    def load(self, _order: protocol.Load) -> None:
        """Load the instance's image from the archive in the frames that follow.

        :raises ValueError: the archive is malformed, or has another image
        :raises EngineError: the engine refuses the image
        :raises ProtocolError: the archive does not arrive whole
        """
        self._load_image(self._greeting.image, partial(protocol.read_frames, self._pipe))
        if not self.has_image():
            raise ValueError("its engine made another image of the archive")

    def pull(self, order: protocol.Pull) -> None:
        """Pull the instance's image from the registry. Raises as ``transport.pull_image``."""
        transport.pull_image(self._engine, self._repository(), order.digest, self._greeting.image)

    def fetch(self, order: protocol.Fetch) -> None:
        """Download a stream from the registry and apply it.

        :raises RegistryFailed: the registry refuses, or has other data
        :raises StreamError: the stream is malformed
        """
        with pipes.written_with(self._repository().download(order.digest)) as stream:
            self._stage(stream)

    def apply(self, _order: protocol.Apply) -> None:
        """Apply the stream that follows.

        :raises StreamError: the stream is malformed, or ends too early
        """
        self._stage((os.getpid(), self._pipe))

    def commit(self, _order: protocol.Commit) -> None:
        """Keep the staged data: the caller then does not discard it."""

    def discard(self) -> None:
        """Delete the staged data of the instance. Does nothing if there is none."""
        staging.discard_folders(self._info.data_root, self._greeting.uuid)

    def _stage(self, stream: tuple[int, int]) -> None:
        greeting = self._greeting
        staging.receive_folders(self._info.data_root, greeting.uuid, greeting.token, stream)

    def _repository(self) -> Repository:
        if not transport.ThroughRegistry.is_configured():
            raise ValueError("its option transfer_registry is not set")
        return transport.repository(self._greeting.uuid)


def serve(engine: Engine, load_image: LoadImage, source: IO[bytes], answers: IO[bytes]) -> bool:
    """Receive one instance; return True if the source committed the move.

    :param source: unbuffered, with the messages of the source host
    :param answers: unbuffered, for the answers to it
    """
    # The privileged process cannot open a socket of ssh's by its path in /proc, so a pipe
    # is between.
    read, write = os.pipe()
    threading.Thread(target=_relay, args=(os.dup(source.fileno()), write), daemon=True).start()
    kept = False
    try:
        with ExitStack() as undo:
            undo.callback(os.close, read)
            greeting = protocol.decode(
                protocol.read_line(read, protocol.GREETING_SECONDS), protocol.Greeting
            )
            info = _check_host(engine, greeting.uuid)
            receiver = Receiver(engine, load_image, info, greeting, read)
            receiver.discard()
            with ExitStack() as unless_kept:
                unless_kept.callback(receiver.discard)
                _send(answers, protocol.Ready(receiver.has_image()))
                while not kept:
                    line = protocol.read_line(read, protocol.ORDER_SECONDS)
                    order: protocol.Order = protocol.decode(line, *protocol.ORDERS)
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
