# SPDX-License-Identifier: Apache-2.0
"""Layers read from an engine's storage, in directories that the tests create."""

import base64
import functools
import gzip
import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from novadocker import privsep
from novadocker.linux import pipes
from novadocker.privsep.storage import layer_archive
from tests import archives

CHAIN = "ab" * 32
CACHE = "0123456789abcdef" * 4
ENTRIES = [
    archives.entry("etc", type=b"5", mode=0o755),
    archives.entry("etc/one", b"1" * 700),
    archives.entry("./two", b"2" * 3_000_000),
    archives.entry("/etc/three", b"3"),
    archives.entry("empty"),
    archives.entry("four", type=b"1", linkname="etc/one"),
    archives.entry("way", type=b"2", linkname="/etc"),
    archives.entry("way/five", b"5"),
    archives.entry("caf\udce9", b"latin"),
]


class Root:
    """The data root of an engine with one layer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept = path / "image/overlay2/layerdb/sha256" / CHAIN
        self.files = path / "overlay2" / CACHE / "diff"
        self.kept.mkdir(parents=True)
        self.files.mkdir(parents=True)
        (self.kept / "cache-id").write_text(CACHE)

    def keep(self, content: bytes) -> None:
        """Store a layer as engines do."""
        entries: list[dict[str, Any]] = []
        position = 0
        with tarfile.open(fileobj=io.BytesIO(content), errors="surrogateescape") as tar:
            for member in tar:
                self._unpack(tar, member)
                if member.isreg():
                    entries.append(segment(content[position : member.offset_data]))
                    entries.append({"type": 1, **named(member.name), "size": member.size})
                    position = member.offset_data + member.size
        self.keep_entries([*entries, segment(content[position:])])

    def keep_entries(self, entries: Sequence[dict[str, Any]]) -> None:
        lines = "".join(f"{json.dumps(entry)}\n" for entry in entries)
        (self.kept / "tar-split.json.gz").write_bytes(gzip.compress(lines.encode()))

    def _unpack(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = self.files / member.name.lstrip("/")
        if member.isdir():
            path.mkdir()
        elif member.issym():
            path.symlink_to(member.linkname)
        elif member.islnk():
            path.hardlink_to(self.files / member.linkname)
        elif not member.name.startswith("way/"):
            path.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
        else:
            (self.files / "etc" / path.name).write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]

    def read(self) -> bytes:
        """Return the layer's archive."""
        write = functools.partial(layer_archive.write_layer, str(self.path), CHAIN)
        with pipes.read_from(write) as (chunks, writing):
            content = b"".join(chunks)
            assert writing.result() == len(content)
        return content


def segment(content: bytes) -> dict[str, Any]:
    return {"type": 2, "payload": base64.b64encode(content).decode()}


def named(name: str) -> dict[str, str]:
    try:
        return {"name": name.encode().decode()}
    except UnicodeEncodeError:
        return {"name_raw": base64.b64encode(os.fsencode(name)).decode()}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    monkeypatch.setattr(privsep.storage_pctxt, "client_mode", False)
    return Root(tmp_path / "docker")


def content_of(entries: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape"
    ) as tar:
        for found, content in entries:
            tar.addfile(found, io.BytesIO(content))
    return buffer.getvalue()


def test_a_layer_is_made_again_bit_by_bit(root: Root) -> None:
    content = content_of(ENTRIES)
    root.keep(content)
    assert layer_archive.measure_layer(str(root.path), CHAIN) == len(content)
    assert root.read() == content


@pytest.mark.parametrize(
    "name", ["../../../../secret", "/../secret", "out/secret", "up/secret", "pipe", "etc", "gone"]
)
def test_nothing_but_plain_files_of_the_layer_is_read(root: Root, name: str) -> None:
    (root.path / "secret").write_bytes(b"secret")
    (root.files / "out").symlink_to(root.path)
    (root.files / "up").symlink_to("../../..")
    (root.files / "etc").mkdir()
    os.mkfifo(root.files / "pipe")
    root.keep_entries([{"type": 1, "name": name, "size": 6}])
    with pytest.raises(OSError, match=r"No such file|not a regular file"):
        root.read()


def test_a_file_that_is_shorter_than_it_was(root: Root) -> None:
    root.keep(content_of(ENTRIES))
    (root.files / "two").write_bytes(b"2")
    with pytest.raises(OSError, match="shorter"):
        root.read()


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(gzip.compress(b'{"type": 2, "payload": ""}\n')[:-9], id="cut off"),
        pytest.param(gzip.compress(b"{}\n")[:10] + b"\xff" * 20, id="overwritten"),
        pytest.param(b"nonsense", id="not compressed"),
        *(
            pytest.param(gzip.compress(f"{line}\n".encode()), id=line)
            for line in (
                "{}",
                '{"type": 2}',
                '{"type": 1, "name": "one", "size": "many"}',
                "[2]",
                "nonsense",
            )
        ),
    ],
)
def test_a_damaged_record_of_a_layer(root: Root, damaged: bytes) -> None:
    (root.kept / "tar-split.json.gz").write_bytes(damaged)
    with pytest.raises(OSError, match=r"damaged|gzip"):
        layer_archive.measure_layer(str(root.path), CHAIN)


def test_much_between_two_files_is_not_held_in_memory(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_archive, "_LONGEST_LINE", 4096)
    root.keep_entries([segment(bytes(4096))])
    with pytest.raises(OSError, match="more between"):
        root.read()
    with pytest.raises(OSError, match="more between"):
        layer_archive.measure_layer(str(root.path), CHAIN)


def test_who_stops_reading_stops_the_writer(root: Root) -> None:
    root.keep(content_of(ENTRIES))
    write = functools.partial(layer_archive.write_layer, str(root.path), CHAIN)
    with pipes.read_from(write) as (chunks, writing):
        next(iter(chunks))
    with pytest.raises(BrokenPipeError):
        writing.result()


def test_a_configuration(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root.path / "image/overlay2/imagedb/content/sha256"
    folder.mkdir(parents=True)
    (folder / CHAIN).write_bytes(b"{}")
    assert layer_archive.read_config(str(root.path), CHAIN) == b"{}"
    monkeypatch.setattr(layer_archive, "_LARGEST_CONFIG", 1)
    with pytest.raises(OSError, match="too large"):
        layer_archive.read_config(str(root.path), CHAIN)
