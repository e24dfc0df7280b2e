# SPDX-License-Identifier: Apache-2.0
"""The receiving end of a move, whatever the source sends: nothing stays staged without a commit."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nova import conf
from oslo_privsep import comm

from novadocker import exception
from novadocker.virt.docker.images import announced
from novadocker.virt.docker.migration import protocol, receiver
from novadocker.virt.docker.migration.protocol import Message
from novadocker.virt.docker.migration.transports.direct import Apply, Load
from novadocker.virt.docker.migration.transports.registry import Fetch, Pull
from novadocker.virt.docker.model import EngineImage
from tests import archives, fuzz
from tests.unit.fakes import INFO
from tests.unit.migration.hostile import JSON, NO_MESSAGES

UUID = "01234567-89ab-cdef-0123-456789abcdef"
TOKEN = "0" * 32
LAYERS = [archives.tar({"file": b"content"}), archives.tar({"large": bytes(2 << 20)})]
CONFIG = archives.config(LAYERS)
IMAGE = f"sha256:{hashlib.sha256(CONFIG).hexdigest()}"
DIGEST = f"sha256:{'1' * 64}"
MOST = 64 << 20
GREETING = protocol.encode(protocol.Greeting(UUID, TOKEN, IMAGE))


@dataclass
class Engine:
    """An engine without images; ``loaded`` has the archives that it was given, whole or not."""

    has_image: bool = False
    image: str = IMAGE
    size_bytes: int = 0
    failure: Exception | None = None
    loaded: list[bytes] = field(default_factory=list)

    def info(self) -> Any:
        return INFO

    def inspect_container(self, name: str) -> Any:
        raise exception.ContainerNotFound(operation="-", reason=f"no {name}")

    def tag_image(self, image_id: str, repository: str, tag: str) -> None:
        assert image_id == self.image
        if not self.has_image:
            raise exception.EngineImageNotFound(operation="-", reason="-")

    def inspect_image(self, name: str) -> EngineImage:
        assert (name, self.has_image) == (self.image, True)
        return EngineImage(name, size_bytes=self.size_bytes)

    def load_image(self, chunks: Iterable[bytes]) -> str:
        self.loaded.append(b"")
        for chunk in chunks:
            self.loaded[-1] += chunk
        self.has_image = True
        if self.failure is not None:
            raise self.failure
        return self.image


@dataclass
class Staging:
    """The staged data of the host: the streams that were applied."""

    applied: list[bytes] = field(default_factory=list)
    discarded: int = 0
    failure: Exception | None = None

    def receive_folders(
        self, data_root: str, uuid: str, token: str, source: tuple[int, int], most: int
    ) -> None:
        assert (data_root, uuid, token, most) == (INFO.data_root, UUID, TOKEN, MOST)
        self.applied.append(os.read(source[1], 6))
        if self.failure is not None:
            raise self.failure

    def discard_folders(self, data_root: str, uuid: str) -> None:
        assert (data_root, uuid) == (INFO.data_root, UUID)
        self.applied.clear()
        self.discarded += 1


@dataclass
class World:
    engine: Engine
    staging: Staging
    kept: bool = False
    most: int = MOST
    is_expected: bool = True

    def allowed(self, uuid: str) -> int:
        assert uuid == UUID
        if not self.is_expected:
            raise ValueError("Nova does not move the server")
        return self.most

    def serve(self, *parts: bytes, open_end: bool = False) -> list[dict[str, Any]]:
        """Return the answers to what a source sends.

        :param open_end: whether the source keeps the connection open
        """
        read, write = os.pipe()
        answers = io.BytesIO()
        with os.fdopen(read, "rb", buffering=0) as source, os.fdopen(write, "wb") as sender:
            thread = threading.Thread(target=_send, args=(sender, b"".join(parts), open_end))
            thread.start()
            try:
                engine = cast(Any, self.engine)
                load = partial(announced.load, engine)
                self.kept = receiver.serve(engine, load, self.allowed, source, cast(Any, answers))
            finally:
                # The program would end here, and with it the other end of the sender's pipe.
                drain = threading.Thread(target=cast(Any, source).readall)
                drain.start()
                thread.join(30)
                sender.close()
                drain.join(30)
        return [json.loads(line) for line in answers.getvalue().splitlines()]


def _send(sender: Any, data: bytes, open_end: bool) -> None:
    sender.write(data)
    sender.flush()
    if not open_end:
        sender.close()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    found = World(Engine(), Staging())
    monkeypatch.setattr(receiver, "staging", found.staging)
    conf.CONF.set_override("instances_path", str(tmp_path))
    yield found
    conf.CONF.clear_override("instances_path")
    # The image archive leaves no file.
    assert {path.name for path in tmp_path.iterdir()} <= {"locks"}


def frames(content: bytes) -> bytes:
    cut = len(content) // 2
    return b"".join(
        protocol.encode(protocol.Frame(len(part))) + part
        for part in (content[:cut], content[cut:], b"")
    )


def orders(*messages: Message) -> bytes:
    return b"".join(map(protocol.encode, messages))


def archive(
    config: bytes = CONFIG, layers: Sequence[bytes] = LAYERS, tags: Sequence[str] | None = None
) -> bytes:
    return archives.tar(archives.docker_files(config, layers, tags=tags))


READY = {"ready": True, "image": False}


def test_a_move(world: World) -> None:
    sent = orders(Apply()) + b"stream" + orders(protocol.Commit())
    answers = world.serve(GREETING, sent)
    assert answers == [READY, {"applied": True}, {"kept": True}]
    assert world.kept
    assert world.staging.applied == [b"stream"]
    # Data of an earlier move is deleted.
    assert world.staging.discarded == 1


def test_a_server_has_one_session_at_a_time(world: World, tmp_path: Path) -> None:
    """Otherwise a source could bring as much again in each of many sessions."""
    sent = orders(Apply()) + b"stream"
    first = threading.Event(), threading.Event()

    def apply_slowly(*arguments: Any) -> None:
        first[0].set()
        assert first[1].wait(30)

    second = World(world.engine, Staging())
    world.staging.receive_folders = apply_slowly  # type: ignore[method-assign]
    answers: list[Any] = []
    session = threading.Thread(target=lambda: answers.extend(world.serve(GREETING, sent)))
    session.start()
    try:
        assert first[0].wait(30)
        discarded = world.staging.discarded
        # The token is the source's choice.
        other = protocol.encode(protocol.Greeting(UUID, "1" * 32, IMAGE))
        refused = second.serve(other, sent)
        # The refused session deletes nothing that the first one staged.
        assert world.staging.discarded == discarded
    finally:
        first[1].set()
        session.join(30)
    assert refused == [{"refused": "another session receives the server"}]
    assert answers == [
        READY,
        {"applied": True},
        {"refused": "the other host closed the connection"},
    ]


def test_a_session_that_died_refuses_no_other(world: World, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path;"
        "from novadocker.virt.docker.migration import sessions;"
        "session = sessions.only(Path(sys.argv[1]), sys.argv[2]); session.__enter__();"
        "print(flush=True); signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), UUID], stdout=subprocess.PIPE
    ) as session:
        assert session.stdout is not None
        session.stdout.readline()
        assert world.serve(GREETING) == [{"refused": "another session receives the server"}]
        session.kill()
    assert world.serve(GREETING)[0] == READY


def test_a_server_that_nova_does_not_move_here(world: World) -> None:
    world.is_expected = False
    answers = world.serve(GREETING, orders(Apply()), b"stream")
    assert answers == [{"refused": "Nova does not move the server"}]
    assert world.staging.applied == []


def test_an_image_larger_than_the_root_disk(world: World) -> None:
    world.most = 1 << 20
    answers = world.serve(GREETING, orders(Load()), frames(archive()))
    assert answers[0] == READY
    assert "the flavor's root disk has only 1048576" in answers[1]["refused"]
    # The engine gets no manifest, so it makes no image.
    assert all(b"manifest.json" not in loaded for loaded in world.engine.loaded)


def test_an_image_of_many_small_files(world: World) -> None:
    """A boot took it, because the engine counts neither headers nor padding of tar archives."""
    layer = archives.tar({f"file-{number}": b"x" * 1500 for number in range(1000)})
    config = archives.config([layer])
    image = f"sha256:{archives.sha256(config)}"
    world.most = 1500 * 1000
    assert len(layer) > 1.3 * world.most
    world.engine = Engine(image=image, size_bytes=world.most)
    greeting = protocol.encode(protocol.Greeting(UUID, TOKEN, image))
    answers = world.serve(greeting, orders(Load()), frames(archive(config, [layer])))
    assert answers[1] == {"loaded": True}
    world.engine = Engine(image=image, size_bytes=world.most + 1)
    answers = world.serve(greeting, orders(Load()), frames(archive(config, [layer])))
    assert "the flavor's root disk has only 1500000" in answers[1]["refused"]


def test_an_archive_that_is_much_larger_than_the_root_disk(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announced, "_METADATA_BYTES", 0)
    world.most = 1 << 20
    answers = world.serve(GREETING, orders(Load()), frames(archive()))
    assert "the image archive is larger than the flavor's root disk" in answers[1]["refused"]


def test_an_image_that_the_host_has(world: World) -> None:
    world.engine.has_image = True
    assert world.serve(GREETING)[0] == {"ready": True, "image": True}


@pytest.mark.parametrize("line", NO_MESSAGES.values(), ids=NO_MESSAGES)
def test_what_is_no_greeting(world: World, line: bytes) -> None:
    (answer,) = world.serve(line)
    assert list(answer) == ["refused"]
    assert not world.kept


@pytest.mark.parametrize("line", NO_MESSAGES.values(), ids=NO_MESSAGES)
def test_what_is_no_order(world: World, line: bytes) -> None:
    answers = world.serve(GREETING, orders(Apply()), b"stream", line)
    assert answers[:2] == [READY, {"applied": True}]
    assert list(answers[2]) == ["refused"]
    assert not world.kept
    assert world.staging.applied == []


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("GREETING_SECONDS", b""),
        ("LINE_SECONDS", b"{"),
        ("ORDER_SECONDS", GREETING),
        ("LINE_SECONDS", GREETING + orders(Apply()) + b"stream{"),
        ("STALL_SECONDS", GREETING + orders(Load(), protocol.Frame(5)) + b"abc"),
        ("STALL_SECONDS", GREETING + orders(Load())),
    ],
)
def test_a_source_that_falls_silent(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes
) -> None:
    monkeypatch.setattr(protocol, name, 0.2)
    begin = time.monotonic()
    answers = world.serve(data, open_end=True)
    assert "in time" in answers[-1]["refused"]
    assert time.monotonic() - begin < 20
    assert not world.kept
    assert world.staging.applied == []


def test_a_source_that_is_gone(world: World) -> None:
    answers = world.serve(GREETING, orders(Apply()), b"stream")
    assert answers[:2] == [READY, {"applied": True}]
    assert not world.kept
    assert world.staging.applied == []


def test_another_version(world: World) -> None:
    (answer,) = world.serve(GREETING.replace(b'"version": 1', b'"version": 2'))
    assert "different versions" in answer["refused"]


@pytest.mark.parametrize(
    "failure",
    [
        OSError(28, "No space left on device"),
        ValueError("malformed"),
        receiver.pipes.StreamError("the stream ended too early"),
        comm.PrivsepTimeout(),
    ],
)
def test_a_stream_that_fails(world: World, failure: Exception) -> None:
    world.staging.failure = failure
    answers = world.serve(GREETING, orders(Apply()), b"stream", orders(protocol.Commit()))
    assert list(answers[-1]) == ["refused"]
    assert not world.kept
    assert world.staging.applied == []


def test_nothing_stays_staged_after_an_error_of_the_program(world: World) -> None:
    world.staging.failure = RuntimeError("a defect")
    with pytest.raises(RuntimeError, match="a defect"):
        world.serve(GREETING, orders(Apply()), b"stream")
    assert world.staging.applied == []


@pytest.mark.parametrize("order", [Pull(DIGEST), Fetch(DIGEST)])
def test_a_host_without_a_registry(world: World, order: Message) -> None:
    assert world.serve(GREETING, orders(order))[-1] == {
        "refused": "its option transfer_registry is not set"
    }


def test_an_image_is_loaded_without_its_names(world: World) -> None:
    sent = frames(archive(tags=["victim:latest"]))
    assert world.serve(GREETING, orders(Load()), sent)[1] == {"loaded": True}
    (given,) = world.engine.loaded
    assert b'"RepoTags": null' in given
    assert b"victim" not in given


OTHER = archives.config(LAYERS, config={"Cmd": ["other"]})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (archive(OTHER, tags=["victim:latest"]), "another image"),
        (archive(layers=[LAYERS[0], archives.tar({"large": bytes([1]) * (2 << 20)})]), "digest"),
        (archive(layers=[archives.tar({"file": b"spoiled"}), LAYERS[1]]), "digest"),
        (archive()[: 1 << 20], "truncated"),
        (b"no archive" * 1000, "not a tar archive"),
        (b"", "not a tar archive"),
    ],
)
def test_another_image_than_the_announced_one(world: World, content: bytes, words: str) -> None:
    answers = world.serve(GREETING, orders(Load()), frames(content))
    assert words in answers[-1]["refused"]
    # Without a manifest an engine makes no image, and gives no name.
    assert all(b"manifest.json" not in given for given in world.engine.loaded)


def test_an_image_larger_than_there_is_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announced.room, "left", lambda _folder: 1 << 20)
    answers = world.serve(GREETING, orders(Load()), frames(archive()))
    assert "room" in answers[-1]["refused"]


def test_an_engine_that_refuses_the_image(world: World) -> None:
    world.engine.failure = exception.EngineError(operation="an image archive", reason="it is full")
    answers = world.serve(GREETING, orders(Load()), frames(archive()))
    assert "it is full" in answers[-1]["refused"]


@fuzz.examples(100)
@given(
    st.booleans(),
    st.lists(
        st.one_of(
            st.binary(max_size=32),
            JSON.map(lambda found: json.dumps(found).encode()),
            st.sampled_from([orders(kind()) for kind in (Load, Apply)]),
            st.just(orders(protocol.Frame(3)) + b"abc"),
            st.just(orders(protocol.Frame(0))),
        ).map(lambda line: line + b"\n"),
        max_size=4,
    ),
)
def test_any_source(world: World, greets: bool, lines: list[bytes]) -> None:
    world.engine.has_image = False
    with fuzz.bounds():
        answers = world.serve(GREETING if greets else b"", *lines)
    assert list(answers[-1]) == ["refused"]
    assert not world.kept
    assert world.staging.applied == []
