# SPDX-License-Identifier: Apache-2.0
"""Images that go on to the engine while they arrive from Glance."""

import io
import json
import tarfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import pytest

from novadocker import exception
from novadocker.virt.docker import images
from tests import archives
from tests.fake_glance import FakeGlance
from tests.unit.test_images import ID, LOADED, FakeEngine, folder, left_in, store

__all__ = ["folder", "store"]

LARGE = archives.tar({"large": bytes(3 << 20)})
LAYERS = [archives.tar({"small": b"1"}), LARGE]
CONFIG = archives.config(LAYERS)
FILES = archives.docker_files(CONFIG, LAYERS)
ARCHIVE = archives.tar(FILES)
SECONDS = 30


class Glance:
    """Serves an image in two parts; what is between them is up to the test."""

    def __init__(self, content: bytes, pause: Any, monkeypatch: Any, glance: FakeGlance) -> None:
        self.content, self.pause = content, pause
        monkeypatch.setattr(glance, "download", self._download)
        # half of its large layer, or what there is of it
        self.half = min(2 << 20, len(content) - 512)

    def _download(self, context: object, image_id: str, data: IO[bytes]) -> None:
        data.write(self.content[: self.half])
        self.pause()
        data.write(self.content[self.half :])


@pytest.fixture
def fake_engine() -> "Engine":
    return Engine()


class Engine(FakeEngine):
    """Keeps what it is sent; tells when the first MiB of it is there."""

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
    store: images.ImageStore, fake_engine: Engine, fake_glance: FakeGlance, monkeypatch: Any
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
    # each once, and nothing else
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
    store: images.ImageStore,
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
    store: images.ImageStore,
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
    store: images.ImageStore,
    fake_engine: Engine,
    fake_glance: FakeGlance,
    folder: Path,
    monkeypatch: Any,
) -> None:
    fake_engine.failing = frozenset({"load"})
    refused = threading.Event()

    def endless(context: object, image_id: str, data: IO[bytes]) -> None:
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


def test_an_image_that_the_host_has_no_room_for(
    store: images.ImageStore, fake_glance: FakeGlance, folder: Path
) -> None:
    meta = fake_glance.add(ID, ARCHIVE, size=1 << 60)
    with pytest.raises(exception.DownloadFailed, match="no room"):
        store.ensure(None, meta)
    assert (fake_glance.downloads, left_in(folder)) == ([], [])
