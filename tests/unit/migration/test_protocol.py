# SPDX-License-Identifier: Apache-2.0
"""The messages of a move: their form on the wire, and lines that are no messages."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novadocker.virt.docker.migration import protocol
from novadocker.virt.docker.migration.protocol import (
    Applied,
    Commit,
    Frame,
    Greeting,
    Kept,
    Loaded,
    Message,
    ProtocolError,
    Ready,
    Refused,
)
from novadocker.virt.docker.migration.transports.direct import Apply, Load
from novadocker.virt.docker.migration.transports.registry import Fetch, Pull
from tests import fuzz
from tests.unit.migration.hostile import JSON, NO_MESSAGES

UUID = "01234567-89ab-cdef-0123-456789abcdef"
TOKEN = "0" * 32
DIGEST = f"sha256:{'1' * 64}"

# The form that the hosts of all releases with version 1 exchange.
WIRE: list[tuple[Message, dict[str, object]]] = [
    (Greeting(UUID, TOKEN, DIGEST), {"version": 1, "uuid": UUID, "token": TOKEN, "image": DIGEST}),
    (Load(), {"load": True}),
    (Frame(5), {"bytes": 5}),
    (Frame(0), {"bytes": 0}),
    (Pull(DIGEST), {"pull": DIGEST}),
    (Fetch(DIGEST), {"fetch": DIGEST}),
    (Apply(), {"apply": True}),
    (Commit(), {"commit": True}),
    (Ready(image=True), {"ready": True, "image": True}),
    (Ready(image=False), {"ready": True, "image": False}),
    (Loaded(), {"loaded": True}),
    (Applied(), {"applied": True}),
    (Kept(), {"kept": True}),
    (Refused("it is full"), {"refused": "it is full"}),
]
KINDS = tuple({type(message) for message, _ in WIRE})

Pipe = tuple[int, Callable[[bytes], None], Callable[[], None]]


@pytest.mark.parametrize(("message", "fields"), WIRE)
def test_the_form_on_the_wire(message: Message, fields: dict[str, object]) -> None:
    line = protocol.encode(message)
    assert line.endswith(b"\n")
    assert json.loads(line) == fields
    assert protocol.decode(line, type(message)) == message


@pytest.mark.parametrize(
    ("order", "answer"),
    [(Load, Loaded), (Pull, Loaded), (Fetch, Applied), (Apply, Applied), (Commit, Kept)],
)
def test_the_answer_to_an_order(order: type[protocol.Order], answer: type[Message]) -> None:
    assert order.ANSWER is answer


@pytest.mark.parametrize("line", NO_MESSAGES.values(), ids=NO_MESSAGES)
def test_what_is_no_message(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode(line, *KINDS)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Load, {"load": 1}),
        (Load, {"load": "true"}),
        (Load, {"load": False}),
        (Load, {"load": True, "more": True}),
        (Load, {"apply": True}),
        (Pull, {"pull": True}),
        (Pull, {"pull": f"{DIGEST}\n"}),
        (Pull, {"pull": f"latest@{DIGEST}"}),
        (Fetch, {"fetch": "../../etc"}),
        (Frame, {"bytes": True}),
        (Frame, {"bytes": -1}),
        (Frame, {"bytes": 1.0}),
        (Frame, {"bytes": float("inf")}),
        (Frame, {"bytes": protocol.LARGEST_FRAME + 1}),
        (Ready, {"ready": True}),
        (Ready, {"ready": True, "image": 1}),
        (Refused, {"refused": ["x"]}),
        (Greeting, {"version": 1}),
        (Greeting, {"version": 1, "uuid": "../..", "token": TOKEN, "image": DIGEST}),
        (Greeting, {"version": 1, "uuid": UUID, "token": "x", "image": DIGEST}),
        (Greeting, {"version": 1, "uuid": UUID, "token": TOKEN, "image": "latest"}),
        (Greeting, {"version": 1, "uuid": UUID, "token": TOKEN, "image": None}),
    ],
)
def test_a_malformed_message(kind: type[Message], fields: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode(json.dumps(fields).encode() + b"\n", kind)


@pytest.mark.parametrize("version", [0, 2, True, 1.0, "1", None])
def test_another_version(version: object) -> None:
    line = json.dumps({"version": version, "whatever": "it has"}).encode() + b"\n"
    with pytest.raises(ProtocolError, match="different versions"):
        protocol.decode(line, Greeting)


def test_a_long_reason_is_cut_off() -> None:
    line = protocol.encode(Refused("\N{PILE OF POO}" * 100_000))
    assert len(line) < protocol.LONGEST_LINE
    assert len(protocol.decode(line, Refused).reason) == 1000
    line = json.dumps({"refused": "x" * 50_000}).encode() + b"\n"
    assert len(protocol.decode(line, Refused).reason) == 1000


@fuzz.examples(200)
@given(st.one_of(st.binary(max_size=64), JSON.map(lambda found: json.dumps(found).encode())))
def test_any_line_is_a_message_or_refused(line: bytes) -> None:
    try:
        with fuzz.bounds():
            found = protocol.decode(line + b"\n", *KINDS)
    except ProtocolError:
        return
    assert protocol.decode(protocol.encode(found), type(found)) == found


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """Yield a pipe's read end, a function that writes to it, and one that closes its write end."""
    read, write = os.pipe()
    threads: list[threading.Thread] = []
    closed = threading.Event()

    def fill(data: bytes) -> None:
        try:
            while data:
                data = data[os.write(write, data) :]
        except OSError:
            pass

    def start(data: bytes) -> None:
        threads.append(threading.Thread(target=fill, args=(data,)))
        threads[-1].start()

    def close() -> None:
        for thread in threads:
            thread.join(30)
        if not closed.is_set():
            closed.set()
            os.close(write)

    yield read, start, close
    os.close(read)
    close()


def test_a_line_is_read_and_no_byte_more(pipe: Pipe) -> None:
    read, write, _ = pipe
    write(b"one\ntwo\nrest")
    assert protocol.read_line(read, 30) == b"one\n"
    assert protocol.read_line(read, 30) == b"two\n"
    assert os.read(read, 100) == b"rest"


def test_a_line_has_a_longest_size(pipe: Pipe) -> None:
    read, write, _ = pipe
    write(b"x" * (protocol.LONGEST_LINE - 1) + b"\n" + b"x" * protocol.LONGEST_LINE + b"\n")
    assert len(protocol.read_line(read, 30)) == protocol.LONGEST_LINE
    with pytest.raises(ProtocolError, match="more than 65536 bytes"):
        protocol.read_line(read, 30)


def test_a_line_that_does_not_come(pipe: Pipe) -> None:
    read, _, _ = pipe
    with pytest.raises(ProtocolError, match="in time"):
        protocol.read_line(read, 0.05)


@pytest.mark.parametrize("drip", [False, True], ids=["one byte", "a byte now and then"])
def test_a_line_that_does_not_end(pipe: Pipe, monkeypatch: pytest.MonkeyPatch, drip: bool) -> None:
    read, write, _ = pipe
    monkeypatch.setattr(protocol, "LINE_SECONDS", 0.3)
    ended = threading.Event()

    def trickle() -> None:
        write(b"x")
        while drip and not ended.wait(0.1):
            write(b"x")

    thread = threading.Thread(target=trickle)
    thread.start()
    begin = time.monotonic()
    with pytest.raises(ProtocolError, match="in time"):
        protocol.read_line(read, 30)
    assert time.monotonic() - begin < 10
    ended.set()
    thread.join()


@pytest.mark.parametrize("data", [b"", b"cut o"])
def test_a_connection_that_ends(pipe: Pipe, data: bytes) -> None:
    read, write, close = pipe
    write(data)
    close()
    with pytest.raises(protocol.ConnectionEnded):
        protocol.read_line(read, 30)


def test_frames(pipe: Pipe) -> None:
    read, write, _ = pipe
    write(b'{"bytes": 3}\nabc{"bytes": 2}\nde{"bytes": 0}\nrest')
    assert b"".join(protocol.read_frames(read, 5)) == b"abcde"
    assert os.read(read, 100) == b"rest"


def test_frames_have_a_largest_size(pipe: Pipe) -> None:
    read, write, _ = pipe
    write(b'{"bytes": 3}\nabc{"bytes": 2}\nde{"bytes": 0}\n')
    frames = protocol.read_frames(read, 4)
    assert next(frames) == b"abc"
    with pytest.raises(ProtocolError, match="room"):
        next(frames)


def test_a_frame_that_stalls(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write, _ = pipe
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.1)
    write(b'{"bytes": 3}\nab')
    with pytest.raises(ProtocolError, match="in time"):
        list(protocol.read_frames(read, 5))
