# SPDX-License-Identifier: Apache-2.0
"""Images that stream to the engine while they arrive from Glance."""

import io
import json
import tarfile
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest

from novadocker import exception
from novadocker.virt.docker.images import store as images_store
from novadocker.virt.docker.images import streaming
from tests import archives
from tests.fake_glance import FakeGlance
from tests.unit.images.test_store import ID, LOADED, FakeEngine, folder, left_in, store

__all__ = ["folder", "store"]

LARGE = archives.tar({"large": bytes(3 << 20)})
LAYERS = [archives.tar({"small": b"1"}), LARGE]
CONFIG = archives.config(LAYERS)
FILES = archives.docker_files(CONFIG, LAYERS)
ARCHIVE = archives.tar(FILES)
SECONDS = 30


class Glance:
    """Serves an image in two parts; the test runs between the parts."""

    def __init__(self, content: bytes, pause: Any, monkeypatch: Any, glance: FakeGlance) -> None:
        self.content, self.pause = content, pause
        monkeypatch.setattr(glance, "download", self._download)
        # The first part ends within the image's large layer, or before its end.
        self.half = min(2 << 20, len(content) - 512)

    def _download(
        self, context: object, image_id: str, data: IO[bytes], trusted_certs: object
    ) -> None:
        data.write(self.content[: self.half])
        self.pause()
        data.write(self.content[self.half :])


@pytest.fixture
def fake_engine() -> "Engine":
    return Engine()


class Engine(FakeEngine):
    """Stores its input; sets an event when it has the first MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.has_some = threading.Event()

    def load_image(self, chunks: Iterable[bytes]) -> str:
        for chunk in chunks:
            self.sent += chunk
            if len(self.sent) > 1 << 20:
                self.has_some.set()
                self._refuse("load")
        return LOADED

    def files(self) -> dict[str, bytes]:
        with tarfile.open(fileobj=io.BytesIO(self.sent)) as tar:
            return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


def test_a_large_layer_does_not_wait_for_the_end(
    store: images_store.ImageStore, fake_engine: Engine, fake_glance: FakeGlance, monkeypatch: Any
) -> None:
    meta = fake_glance.add(ID, ARCHIVE)

    def pause() -> None:
        assert fake_engine.has_some.wait(SECONDS)

    Glance(ARCHIVE, pause, monkeypatch, fake_glance)
    assert store.ensure(None, meta).id == LOADED
    files = fake_engine.files()
    (manifest,) = json.loads(files["manifest.json"])
    assert [files[name] for name in manifest["Layers"]] == LAYERS
    assert files[manifest["Config"]] == CONFIG
    # Each file appears once, and no other file appears.
    assert len(files) == len(LAYERS) + 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (archives.tar({**FILES, "manifest.json": b"[]"}), "holds 0 images"),
        (ARCHIVE[: 2 << 20], "truncated"),
        (
            archives.tar({n: LARGE[:-1] + b"x" if d == LARGE else d for n, d in FILES.items()}),
            "layer 2 does not match its digest",
        ),
    ],
    ids=["manifest", "truncated", "layer"],
)
def test_what_turns_out_to_be_bad_gets_no_manifest(
    store: images_store.ImageStore,
    fake_engine: Engine,
    fake_glance: FakeGlance,
    folder: Path,
    monkeypatch: Any,
    content: bytes,
    reason: str,
) -> None:
    meta = fake_glance.add(ID, content)
    Glance(content, lambda: None, monkeypatch, fake_glance)
    with pytest.raises(exception.InvalidImage, match=reason):
        store.ensure(None, meta)
    assert len(fake_engine.sent) > 1 << 20
    assert b"RepoTags" not in fake_engine.sent
    assert (fake_engine.tags, left_in(folder)) == ({}, [])


@pytest.mark.parametrize("half", [False, True], ids=["breaks", "half a body"])
def test_a_download_that_is_not_whole(
    store: images_store.ImageStore,
    fake_engine: Engine,
    fake_glance: FakeGlance,
    folder: Path,
    monkeypatch: Any,
    half: bool,
) -> None:
    def pause() -> None:
        raise OSError("Glance is gone")

    meta = fake_glance.add(ID, ARCHIVE)
    if half:
        Glance(ARCHIVE[: 2 << 20], lambda: None, monkeypatch, fake_glance)
    else:
        Glance(ARCHIVE, pause, monkeypatch, fake_glance)
    error = exception.InvalidImage if half else exception.DownloadFailed
    with pytest.raises(error, match="is truncated" if half else "Glance is gone"):
        store.ensure(None, meta)
    assert b"manifest.json" not in fake_engine.sent
    assert (fake_engine.tags, left_in(folder)) == ({}, [])


def test_the_download_ends_when_the_engine_refuses(
    store: images_store.ImageStore,
    fake_engine: Engine,
    fake_glance: FakeGlance,
    folder: Path,
    monkeypatch: Any,
) -> None:
    fake_engine.failing = frozenset({"load"})
    refused = threading.Event()

    def endless(context: object, image_id: str, data: IO[bytes], trusted_certs: object) -> None:
        try:
            data.write(ARCHIVE[: 2 << 20])
            while True:
                data.write(bytes(1 << 20))
        except OSError:
            refused.set()
            raise

    meta = fake_glance.add(ID, ARCHIVE)
    monkeypatch.setattr(fake_glance, "download", endless)
    with pytest.raises(exception.EngineError, match="refused load"):
        store.ensure(None, meta)
    assert refused.is_set()
    assert left_in(folder) == []


class SlowFile:
    """A replacement for a file that the kernel takes long to free."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.may_close = threading.Event()
        self.closed = threading.Event()
        self.closed_by: threading.Thread | None = None

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        assert self.may_close.wait(SECONDS)
        self.file.close()
        self.closed_by = threading.current_thread()
        self.closed.set()

    def __enter__(self) -> "SlowFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@pytest.fixture
def slow_file(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowFile]:
    with tempfile.TemporaryFile() as file:
        found = SlowFile(file)
        monkeypatch.setattr(streaming.tempfile, "TemporaryFile", lambda **_: found)
        yield found


def test_nobody_waits_for_the_room_of_a_download(
    store: images_store.ImageStore, fake_glance: FakeGlance, slow_file: SlowFile
) -> None:
    assert store.ensure(None, fake_glance.add(ID, ARCHIVE)).id == LOADED
    assert not slow_file.closed.is_set()
    slow_file.may_close.set()
    assert slow_file.closed.wait(SECONDS)


def test_a_load_that_failed_has_given_back_its_room(
    store: images_store.ImageStore,
    fake_engine: Engine,
    fake_glance: FakeGlance,
    slow_file: SlowFile,
) -> None:
    slow_file.may_close.set()
    fake_engine.failing = frozenset({"load"})
    with pytest.raises(exception.EngineError, match="refused load"):
        store.ensure(None, fake_glance.add(ID, ARCHIVE))
    assert slow_file.closed_by is threading.current_thread()


# -- the lowest layer ------------------------------------------------------------------------------

ONE = archives.docker_files(archives.config([LARGE]), [LARGE])
ARRIVING = f"novadocker/{ID}:arriving"


def sent_for(files: archives.Files, store: images_store.ImageStore, glance: FakeGlance) -> str:
    """Boot an image; return its name."""
    meta = glance.add(ID, archives.tar(files))
    assert store.ensure(None, meta).id == LOADED
    return f"novadocker/{ID}:{meta.checksum[:12]}"


def test_the_lowest_layer_is_unpacked_while_it_arrives(
    store: images_store.ImageStore, fake_engine: Engine, fake_glance: FakeGlance
) -> None:
    name = sent_for(ONE, store, fake_glance)
    assert fake_engine.unpacked == [LARGE]
    files = fake_engine.files()
    assert sorted(files) == sorted(
        [f"{archives.sha256(archives.config([LARGE]))}.json", "manifest.json"]
    )
    # The temporary image that held the layer is deleted.
    assert list(fake_engine.tags) == [name]
    assert fake_engine.removed == [ARRIVING] * 2


LARGER = archives.tar({"large": b"1" * (3 << 20)})


@pytest.mark.parametrize(
    ("layers", "changes"),
    [
        ([LARGE], {"storage_driver": "overlayfs"}),
        ([LARGE], {"failing": frozenset({"layer"})}),
        # Another position of the image needs the layer, too.
        ([LARGE, LARGE], {}),
        ([LARGE, LARGER, LARGE], {}),
    ],
    ids=["containerd", "refused", "twice", "below and above"],
)
def test_a_layer_that_must_be_sent_all_the_same(
    store: images_store.ImageStore,
    fake_engine: Engine,
    fake_glance: FakeGlance,
    layers: list[bytes],
    changes: dict[str, Any],
) -> None:
    vars(fake_engine).update(changes)
    # The temporary image's own name is the reason for the refusal of the load.
    sent_for(archives.docker_files(archives.config(layers), layers), store, fake_glance)
    files = fake_engine.files()
    (manifest,) = json.loads(files["manifest.json"])
    assert [files[name] for name in manifest["Layers"]] == layers


def test_a_wrong_guess(
    store: images_store.ImageStore, fake_engine: Engine, fake_glance: FakeGlance
) -> None:
    layers = [LARGER, LARGE]
    files = archives.docker_files(archives.config(layers), layers)
    lower, higher, *others = files
    swapped = {name: files[name] for name in (higher, lower, *others)}
    name = sent_for(swapped, store, fake_glance)
    assert fake_engine.unpacked == [LARGE]
    sent = fake_engine.files()
    (manifest,) = json.loads(sent["manifest.json"])
    assert [sent[name] for name in manifest["Layers"]] == layers
    assert list(fake_engine.tags) == [name]


@pytest.mark.parametrize(
    "content",
    [
        archives.tar({**ONE, "manifest.json": b"[]"}),
        archives.tar(ONE)[: 2 << 20],
        archives.tar({n: LARGE[:-1] + b"x" if d == LARGE else d for n, d in ONE.items()}),
    ],
    ids=["manifest", "truncated", "layer"],
)
def test_nothing_stays_unpacked_of_what_turns_out_to_be_bad(
    store: images_store.ImageStore, fake_engine: Engine, fake_glance: FakeGlance, content: bytes
) -> None:
    meta = fake_glance.add(ID, content)
    with pytest.raises(exception.InvalidImage):
        store.ensure(None, meta)
    assert b"RepoTags" not in fake_engine.sent
    assert (fake_engine.tags, fake_engine.removed) == ({}, [ARRIVING] * 2)


def test_nothing_stays_unpacked_of_half_a_download(
    store: images_store.ImageStore, fake_engine: Engine, fake_glance: FakeGlance, monkeypatch: Any
) -> None:
    def pause() -> None:
        raise OSError("Glance is gone")

    content = archives.tar(ONE)
    meta = fake_glance.add(ID, content)
    Glance(content, pause, monkeypatch, fake_glance)
    with pytest.raises(exception.DownloadFailed, match="Glance is gone"):
        store.ensure(None, meta)
    assert (fake_engine.unpacked, fake_engine.tags) == ([], {})


@pytest.mark.parametrize(
    "magic", [b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ", b"P*M\x18", b"(\xb5/\xfd"]
)
def test_what_an_engine_might_take_for_compressed_is_not_unpacked(
    store: images_store.ImageStore, fake_engine: Engine, fake_glance: FakeGlance, magic: bytes
) -> None:
    """The name in a tar archive can also be the start of a decompression bomb."""
    entry = tarfile.TarInfo(magic.decode("utf-8", "surrogateescape"))
    entry.size = 3 << 20
    head = entry.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    layer = head + bytes(entry.size + 1024)
    files = archives.docker_files(archives.config([layer]), [layer])
    with suppress(exception.InvalidImage):
        store.ensure(None, fake_glance.add(ID, archives.tar(files)))
    assert (fake_engine.unpacked, fake_engine.removed) == ([], [])


def test_an_image_that_the_host_has_no_room_for(
    store: images_store.ImageStore, fake_glance: FakeGlance, folder: Path
) -> None:
    meta = fake_glance.add(ID, ARCHIVE, size=1 << 60)
    with pytest.raises(exception.DownloadFailed, match="not enough free space"):
        store.ensure(None, meta)
    assert (fake_glance.downloads, left_in(folder)) == ([], [])


def test_a_file_that_is_truncated_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer truncates it, and then raises its error, as Nova does for a wrong signature."""
    reached, truncated = threading.Event(), threading.Event()
    content = archives.tar({"small": b"{}"})
    reaches = streaming.Arrival._reaches

    def note(arrival: streaming.Arrival, size: int) -> bool:
        found = reaches(arrival, size)
        if size > tarfile.BLOCKSIZE:
            reached.set()
            assert truncated.wait(SECONDS)
        return found

    def fetch(arrival: streaming.Arrival) -> None:
        arrival.write(content)
        assert reached.wait(SECONDS)
        arrival.truncate(0)
        truncated.set()
        raise exception.InvalidImage(image_id=ID, reason="it does not match its signature")

    monkeypatch.setattr(streaming.Arrival, "_reaches", note)
    with (
        streaming.arriving(tmp_path, len(content), fetch) as arrival,
        pytest.raises(exception.InvalidImage, match="match its signature"),
    ):
        list(arrival.layers(None))
