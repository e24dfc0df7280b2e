# SPDX-License-Identifier: Apache-2.0
"""The protocol of a move: the messages between the source host and the destination host.

Both ends use this module. A message is a JSON object on a line of its own. The source sends a
greeting, then orders; the destination answers each of them. The orders of a transport are in its
module below ``transports``::

    source                                               destination
    {"version": 1, "uuid": U, "token": T, "image": D}    {"ready": true, "image": true or false}
    {"load": true}, then frames of an image archive      {"loaded": true}
    {"pull": D}                                          {"loaded": true}
    {"fetch": D}                                         {"applied": true}
    {"apply": true}, then a stream of ``tree_stream``    {"applied": true}
    {"commit": true}                                     {"kept": true}

A frame is the line ``{"bytes": N}`` and N bytes; ``{"bytes": 0}`` ends the frames. Instead of its
answer the destination may send ``{"refused": REASON}``, after which it ends. The destination
deletes the data that it received unless the source commits the move.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self, TypeVar

from novadocker import naming
from novadocker.linux import pipes
from novadocker.privsep import arguments

VERSION = 1
"""Version of the protocol and of the text in ``disk_info``; both hosts must have the same."""

LONGEST_LINE = 1 << 16
"""Size of a message's line in bytes, with its end."""

LARGEST_FRAME = 64 << 20
"""Size of a frame in bytes."""

GREETING_SECONDS = 120.0
"""How long each end waits for the other's first message: ssh connects, privsep-helper starts."""

ANSWER_SECONDS = 1800.0
"""How long the source waits for the answer to most orders: the destination loads, syncs."""

ORDER_SECONDS = 7200.0
"""How long the destination waits for an order.

In between the source uploads a stream (3600 s, the timeout of the privileged call) and stops the
instance.
"""

STALL_SECONDS = 600.0
"""How long each end waits for the next bytes of a frame, or until the other end reads them."""

LINE_SECONDS = 30.0
"""How long a line may take from its first byte to its end."""

_LONGEST_REASON = 1000
_CHUNK_BYTES = 1 << 20

M = TypeVar("M", bound="Message")


class ProtocolError(Exception):
    """The other host sent something else than a message of the protocol, or nothing in time."""


class ConnectionEnded(ProtocolError):
    """The other host closed the connection."""


class Message:
    """A message; ``KEY`` is the key of the JSON object that identifies its kind."""

    KEY: ClassVar[str]

    def fields(self) -> dict[str, object]:
        """Return the JSON object."""
        raise NotImplementedError

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Self:
        """Return the message that a JSON object describes.

        :raises ValueError: the object is not well-formed
        """
        raise NotImplementedError


class Order(Message):
    """A message of the source that the destination answers.

    :cvar ANSWER: kind of the answer if the destination does not refuse
    :cvar SECONDS: how long the source waits for the answer
    """

    ANSWER: ClassVar[type[Message]]
    SECONDS: ClassVar[float] = ANSWER_SECONDS


class Signal(Message):
    """A message that consists of its key."""

    def fields(self) -> dict[str, object]:
        """Return the JSON object."""
        return {self.KEY: True}

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Self:
        """Return the message that a JSON object describes. Raises as ``Message.parse``."""
        _only_true(arguments.fields([cls.KEY], fields)[cls.KEY])
        return cls()


@dataclass(frozen=True)
class Reference(Order):
    """An order that names data in the registry by its digest."""

    digest: str

    def fields(self) -> dict[str, object]:
        """Return the JSON object."""
        return {self.KEY: self.digest}

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Self:
        """Return the order that a JSON object describes. Raises as ``Message.parse``."""
        return cls(arguments.text(naming.DIGEST, arguments.fields([cls.KEY], fields)[cls.KEY]))


# -- from the destination -------------------------------------------------------------------------


@dataclass(frozen=True)
class Ready(Message):
    """Answer to the greeting.

    :ivar image: whether the destination has the instance's image
    """

    KEY = "ready"

    image: bool

    def fields(self) -> dict[str, object]:
        """Return the JSON object."""
        return {self.KEY: True, "image": self.image}

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Self:
        """Return the answer that a JSON object describes. Raises as ``Message.parse``."""
        found = arguments.fields([cls.KEY, "image"], fields)
        _only_true(found[cls.KEY])
        return cls(arguments.flag(found["image"]))


@dataclass(frozen=True)
class Loaded(Signal):
    """Answer: the engine has the image."""

    KEY = "loaded"


@dataclass(frozen=True)
class Applied(Signal):
    """Answer: the disk has the data of the stream."""

    KEY = "applied"


@dataclass(frozen=True)
class Kept(Signal):
    """Answer: the staged directories stay until Nova finishes the move."""

    KEY = "kept"


@dataclass(frozen=True)
class Refused(Message):
    """Answer: the destination cannot receive the instance and has deleted what it received."""

    KEY = "refused"

    reason: str

    def fields(self) -> dict[str, object]:
        """Return the JSON object; a long reason is cut off."""
        return {self.KEY: self.reason[:_LONGEST_REASON]}

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Self:
        """Return the answer that a JSON object describes. Raises as ``Message.parse``."""
        reason = arguments.fields([cls.KEY], fields)[cls.KEY]
        if not isinstance(reason, str):
            raise ValueError(f"{cls.KEY} is not a text")
        return cls(reason[:_LONGEST_REASON])


# -- from the source ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Greeting(Message):
    """The first message of the source.

    :ivar uuid: UUID of the instance
    :ivar token: name of the move, which the staged data has
    :ivar image: the engine's id of the instance's image
    """

    KEY = "version"

    uuid: str
    token: str
    image: str

    def fields(self) -> dict[str, object]:
        """Return the JSON object."""
        return {self.KEY: VERSION, **asdict(self)}

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Self:
        """Return the greeting that a JSON object describes. Raises as ``Message.parse``."""
        # The other fields may differ between versions, so the version is checked first.
        if type(fields[cls.KEY]) is not int or fields[cls.KEY] != VERSION:
            raise ValueError("the hosts have different versions of the protocol of moves")
        found = arguments.fields([cls.KEY, "uuid", "token", "image"], fields)
        return cls(
            arguments.instance_uuid(found["uuid"]),
            arguments.text(naming.TOKEN, found["token"]),
            arguments.text(naming.DIGEST, found["image"]),
        )


@dataclass(frozen=True)
class Frame(Message):
    """Announces so many bytes; 0 ends the frames."""

    KEY = "bytes"

    size: int

    def fields(self) -> dict[str, object]:
        """Return the JSON object."""
        return {self.KEY: self.size}

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Self:
        """Return the frame that a JSON object describes. Raises as ``Message.parse``."""
        size = arguments.fields([cls.KEY], fields)[cls.KEY]
        return cls(arguments.number(range(LARGEST_FRAME + 1), size))


@dataclass(frozen=True)
class Commit(Signal, Order):
    """Order to keep the staged directories."""

    KEY = "commit"
    ANSWER = Kept


# -- on the wire ----------------------------------------------------------------------------------


def encode(message: Message) -> bytes:
    """Return a message as a line."""
    return json.dumps(message.fields()).encode() + b"\n"


def decode(line: bytes, *kinds: type[M]) -> M:
    """Return the message of a line, which must be one of ``kinds``.

    :raises ProtocolError: it is not
    """
    try:
        fields = json.loads(line)
        if isinstance(fields, dict):
            for kind in kinds:
                if kind.KEY in fields:
                    return kind.parse(fields)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the message is malformed: {str(error)[:_LONGEST_REASON]}") from error
    keys = ", ".join(kind.KEY for kind in kinds)
    raise ProtocolError(f"the message is none of: {keys}")


def read_line(descriptor: int, seconds: float) -> bytes:
    """Read a line.

    It is read byte by byte, because the bytes that follow may be for another process.

    :param seconds: how long to wait for its first byte; the rest must arrive in LINE_SECONDS
    :raises ProtocolError: the line is too long or too late
    :raises ConnectionEnded: the other host closed the connection
    """
    line = bytearray()
    end = time.monotonic() + seconds
    while not line.endswith(b"\n"):
        if len(line) == LONGEST_LINE:
            raise ProtocolError(f"a message has more than {LONGEST_LINE} bytes")
        line += _read(descriptor, 1, end - time.monotonic())
        if len(line) == 1:
            end = time.monotonic() + LINE_SECONDS
    return bytes(line)


def read_frames(descriptor: int, limit: int) -> Iterator[bytes]:
    """Yield the content of frames until their end.

    :param limit: how many bytes the frames may have together
    :raises ProtocolError: they have more, are malformed or do not arrive in time
    :raises ConnectionEnded: the other host closed the connection
    """
    while left := decode(read_line(descriptor, STALL_SECONDS), Frame).size:
        limit -= left
        if limit < 0:
            raise ProtocolError(
                "the image archive is larger than the flavor's root disk or than this host's room"
            )
        while left:
            chunk = _read(descriptor, min(left, _CHUNK_BYTES), STALL_SECONDS)
            left -= len(chunk)
            yield chunk


def _read(descriptor: int, size: int, seconds: float) -> bytes:
    try:
        pipes.await_data(descriptor, seconds)
    except TimeoutError as error:
        raise ProtocolError(f"the other host sent no message in time: {error}") from error
    chunk = os.read(descriptor, size)
    if not chunk:
        raise ConnectionEnded("the other host closed the connection")
    return chunk


def _only_true(value: object) -> None:
    if value is not True:
        raise ValueError(f"{value!r} is not true")
