# SPDX-License-Identifier: Apache-2.0
"""A faulty Glance, which is a small HTTP server, queried by Nova's own client."""

import json
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from oslo_privsep import comm

from novadocker import exception
from novadocker.virt.docker.images import archive, writer
from novadocker.virt.docker.images import store as images_store
from novadocker.virt.docker.images.archive import ArchivedImage
from novadocker.virt.docker.images.platforms import Platform
from novadocker.virt.docker.images.regions import Region
from tests.fake_glance import image_record
from tests.unit.images.test_store import ID, LOADED, folder, left_in
from tests.unit.images.test_streaming import ARCHIVE, Engine

__all__ = ["folder"]

# socket(7): linger for zero seconds.
RESET = struct.pack("ii", 1, 0)


class Glance(BaseHTTPRequestHandler):
    """A fake of Glance with one image; ``fault`` names the error in its data.

    :cvar uploads: one entry per upload: True reads it completely; the last entry applies to later
        ones
    :cvar stored: bytes of the last complete upload
    :cvar deleted: True if the image was deleted
    """

    fault = ""
    uploads: ClassVar[list[bool]] = []
    stored = 0
    deleted = False

    def do_GET(self) -> None:
        if not self.path.endswith("/file"):
            found = SCHEMA if "/schemas/" in self.path else RECORD | {"size": Glance.stored}
            self._reply(200, json.dumps(found).encode(), "application/json")
        elif self.fault == "500":
            self._reply(500, b"no disk", "text/plain")
        elif self.fault == "half":
            self._reply(200, ARCHIVE, "application/octet-stream", end=len(ARCHIVE) // 2)
        elif self.fault == "other":
            self._reply(200, ARCHIVE[:-1] + b"x", "application/octet-stream")
        else:
            self._reply(200, ARCHIVE, "application/octet-stream")

    def do_PATCH(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._reply(200, json.dumps(RECORD).encode(), "application/json")

    def do_PUT(self) -> None:
        whole = Glance.uploads.pop(0) if len(Glance.uploads) > 1 else Glance.uploads[0]
        size = 0
        while length := int(self.rfile.readline(), 16):
            size += len(self.rfile.read(length + len("\r\n"))) - len("\r\n")
            if not whole and size > len(ARCHIVE) // 4:
                break
        if not whole:
            # The connection is reset instead of closed, as when the process is killed.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.close_connection = True
            return
        Glance.stored = size
        self._reply(204, b"", "text/plain")

    def do_DELETE(self) -> None:
        Glance.deleted = True
        self._reply(204, b"", "text/plain")

    def _reply(self, status: int, body: bytes, kind: str, end: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:end])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


RECORD = {**image_record(ID, ARCHIVE), "self": f"/v2/images/{ID}"}
SCHEMA = {"name": "image", "properties": {name: {} for name in RECORD}}


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def image(tmp_path: Path) -> Iterator[ArchivedImage]:
    """Yield the image for the upload."""
    with (tmp_path / "image.tar").open("w+b") as file:
        file.write(ARCHIVE)
        file.flush()
        content = Region(file.fileno(), 0, len(ARCHIVE))
        with archive.open_image(content, Platform("amd64"), tmp_path) as found:
            yield found


@pytest.fixture
def store(folder: Path, engine: Engine, options: Any) -> Iterator[images_store.ImageStore]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Glance) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        options(
            group="glance",
            api_servers=[f"http://127.0.0.1:{server.server_port}"],
            num_retries=0,
        )
        yield images_store.ImageStore(engine, "x86_64")  # type: ignore[arg-type]
        server.shutdown()
        thread.join()


def boot(store: images_store.ImageStore) -> str:
    context = nova_context.RequestContext("user", "p1", auth_token="token")
    wanted = ("id", "container_format", "disk_format", "checksum")
    meta = objects.ImageMeta.from_dict({name: RECORD[name] for name in wanted})
    return store.ensure(context, meta).id


def test_a_sound_one(store: images_store.ImageStore, monkeypatch: Any) -> None:
    monkeypatch.setattr(Glance, "fault", "")
    assert boot(store) == LOADED


@pytest.mark.parametrize(
    ("fault", "text"),
    [("500", "no disk"), ("half", "Connection broken"), ("other", "Corrupt image download")],
)
def test_a_broken_one(
    store: images_store.ImageStore,
    engine: Engine,
    folder: Path,
    monkeypatch: Any,
    fault: str,
    text: str,
) -> None:
    monkeypatch.setattr(Glance, "fault", fault)
    with pytest.raises(exception.DownloadFailed, match=text) as raised:
        boot(store)
    assert len(raised.value.format_message()) < 255
    assert b"RepoTags" not in engine.sent
    assert (engine.tags, left_in(folder)) == ({}, [])


@pytest.mark.parametrize(
    ("uploads", "error"),
    [
        ([False], nova_exception.GlanceConnectionFailed),
        # Nova's client retries and sends only the remaining data.
        ([False, True], exception.SnapshotFailed),
    ],
    ids=["for good", "for a moment"],
)
def test_it_vanishes_during_an_upload(
    store: images_store.ImageStore,
    image: ArchivedImage,
    folder: Path,
    options: Any,
    monkeypatch: Any,
    uploads: list[bool],
    error: type[Exception],
) -> None:
    options(group="glance", num_retries=1)
    for name, value in {"uploads": uploads, "stored": 0, "deleted": False}.items():
        monkeypatch.setattr(Glance, name, value)
    context = nova_context.RequestContext("user", "p1", auth_token="token")
    with pytest.raises(error):
        store.upload(context, ID, image)
    assert Glance.deleted


def test_a_whole_upload(
    store: images_store.ImageStore, image: ArchivedImage, monkeypatch: Any
) -> None:
    for name, value in {"uploads": [True], "stored": 0, "deleted": False}.items():
        monkeypatch.setattr(Glance, name, value)
    store.upload(nova_context.RequestContext("user", "p1", auth_token="token"), ID, image)
    size = sum(map(len, writer.docker_archive(image)))
    assert (Glance.stored, Glance.deleted) == (size, False)


@pytest.mark.parametrize("fault", [OSError("gone"), comm.PrivsepTimeout("3600 s")])
def test_a_layer_that_can_not_be_read_is_a_fault_of_the_snapshot(fault: Exception) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"a"
        raise fault

    with pytest.raises(exception.SnapshotFailed, match=str(fault)):
        list(images_store._readable(chunks()))
