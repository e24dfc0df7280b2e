# SPDX-License-Identifier: Apache-2.0
"""From a container to the archive of its image, over a fake of the engine."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from novadocker import exception
from novadocker.virt.docker import flatten, snapshots
from novadocker.virt.docker.archive import Layer
from novadocker.virt.docker.compression import Region
from novadocker.virt.docker.model import ContainerDetail, EngineImage
from tests import archives
from tests.unit.test_archive import read_tar

SECONDS = 30
CHANGES = archives.tar({"changed": b"1"})
BASE = [archives.tar({"large": bytes(3 << 20)}), archives.tar({"small": b"1"})]
CONTAINER = ContainerDetail(
    id="c",
    name="nova-1",
    status="exited",
    labels={},
    pid=0,
    stop_signal="SIGTERM",
    started_at=None,
    image_id="i",
)


@dataclass
class Engine:
    """Has one image; ``pause`` runs in the middle of its archive."""

    history: list[dict[str, object]]
    pause: Callable[[], None] = lambda: None
    refuses_history: bool = False

    def inspect_image(self, name: str) -> EngineImage:
        return EngineImage(id=name, layers=len(BASE))

    def image_history(self, name: str) -> list[str]:
        if self.refuses_history:
            raise exception.EngineError(operation="a history", reason="malformed")
        return [str(step["created_by"]) for step in reversed(self.history)]

    def save_image(self, name: str) -> Iterator[bytes]:
        config = archives.config(BASE, history=self.history)
        content = archives.tar(archives.docker_files(config, BASE))
        yield content[: 2 << 20]
        self.pause()
        yield content[2 << 20 :]


PLAIN: list[dict[str, object]] = [{"created_by": "base"}, {"created_by": "base"}]
DEEP: list[dict[str, object]] = [{"created_by": "base"}, {"created_by": flatten.SNAPSHOT}]


@pytest.fixture(autouse=True)
def changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with (tmp_path / "changes").open("w+b") as file:
        file.write(CHANGES)
        file.flush()
        layer = Layer(archives.sha256(CHANGES), Region(file.fileno(), 0, len(CHANGES)))
        monkeypatch.setattr(snapshots, "_read_changes", lambda *_: layer)
        yield


def take(engine: Engine, folder: Path, seen: Callable[[bytes], None] = lambda _: None) -> bytes:
    written = b""
    with snapshots.take(engine, CONTAINER, "amd64", folder, 1) as pieces:  # type: ignore[arg-type]
        for piece in pieces:
            written += piece
            seen(written)
    assert [entry.name for entry in folder.iterdir()] == ["changes"]
    return written


def layers_of(written: bytes) -> list[bytes]:
    files = read_tar(written)
    (manifest,) = json.loads(files["manifest.json"])
    return [files[name] for name in manifest["Layers"]]


def test_the_layers_do_not_wait_for_the_engine(tmp_path: Path) -> None:
    begun = threading.Event()

    def pause() -> None:
        assert begun.wait(SECONDS)

    def seen(written: bytes) -> None:
        if len(written) > 1 << 20:
            begun.set()

    written = take(Engine(PLAIN, pause), tmp_path, seen)
    assert layers_of(written) == [*BASE, CHANGES]
    assert len(written) < sum(map(len, (*BASE, CHANGES))) + (1 << 20)


@pytest.mark.parametrize(("history", "count"), [(PLAIN, 3), (DEEP, 2)], ids=["plain", "deep"])
@pytest.mark.parametrize("refuses", [False, True])
def test_layers_of_snapshots_become_one(
    tmp_path: Path, history: list[dict[str, object]], count: int, refuses: bool
) -> None:
    written = take(Engine(history, refuses_history=refuses), tmp_path)
    found = layers_of(written)
    assert len(found) == count
    assert found[0] == BASE[0]
    assert {"small", "changed"} <= {name for layer in found for name in read_tar(layer)}
    # no layer is in it that the image has not
    assert len(written) < sum(map(len, found)) + (1 << 20)


def test_the_engine_breaks_off(tmp_path: Path) -> None:
    def pause() -> None:
        raise exception.EngineUnavailable(url="fake", reason="gone")

    with pytest.raises(exception.EngineUnavailable):
        take(Engine(PLAIN, pause), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["changes"]


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "_room", lambda _: 1 << 20)
    with pytest.raises(exception.SnapshotFailed, match="no room"):
        take(Engine(PLAIN), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["changes"]


def test_glance_breaks_off(tmp_path: Path) -> None:
    class Full(Exception):
        pass

    def seen(written: bytes) -> None:
        raise Full

    with pytest.raises(Full):
        take(Engine(PLAIN), tmp_path, seen)
    assert [entry.name for entry in tmp_path.iterdir()] == ["changes"]
