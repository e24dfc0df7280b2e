# SPDX-License-Identifier: Apache-2.0
"""Flattened layers: the result shows the same files as the stack of layers."""

import contextlib
import io
import json
import posixpath
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from novadocker.virt.docker.images import squash, tar_reader
from novadocker.virt.docker.images.archive import ArchivedImage, Layer
from novadocker.virt.docker.images.regions import ArchiveError, Region
from tests import archives

NewFile = Callable[[], int]
Entry = tuple[tarfile.TarInfo, bytes]
View = dict[str, tuple[object, ...]]


@pytest.fixture
def new_file(tmp_path: Path) -> Iterator[NewFile]:
    with contextlib.ExitStack() as files:
        yield lambda: files.enter_context(tempfile.TemporaryFile(dir=tmp_path)).fileno()


def layer_of(entries: Sequence[Entry], new_file: NewFile) -> Layer:
    return layer_from(archives.tar_of(entries), new_file)


def layer_from(content: bytes, new_file: NewFile) -> Layer:
    number = new_file()
    with open(number, "wb", closefd=False) as file:
        file.write(content)
    region = Region(number, 0, len(content))
    return Layer(region.digest(), region)


def contents(layers: Sequence[Layer]) -> list[Region]:
    return [layer.content for layer in layers if isinstance(layer.content, Region)]


def folder(name: str) -> Entry:
    return archives.entry(name, type=b"5", mode=0o755)


def file(name: str, content: str = "") -> Entry:
    return archives.entry(name, (content or name).encode())


def link(name: str, target: str) -> Entry:
    return archives.entry(name, type=b"1", linkname=target)


def gone(name: str) -> Entry:
    head, tail = posixpath.split(name)
    return archives.entry(posixpath.join(head, f".wh.{tail}"))


def opaque(name: str) -> Entry:
    return archives.entry(f"{name}/.wh..wh..opq")


def unpack(layers: Sequence[Layer]) -> View:
    """Return the visible files of a stack of layers, computed from the lowest up like an engine."""
    seen: View = {}
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(b"".join(layer.content.chunks()))) as tar:
            members = tar.getmembers()
            for member in members:
                head, tail = posixpath.split(member.name)
                if tail == ".wh..wh..opq":
                    remove_below(seen, head)
                elif tail.startswith(".wh."):
                    name = posixpath.join(head, tail[4:])
                    seen.pop(name, None)
                    remove_below(seen, name)
            for member in members:
                if not posixpath.basename(member.name).startswith(".wh."):
                    if not member.isdir():
                        remove_below(seen, member.name)
                    seen[member.name] = describe(member, tar, seen)
    return seen


def describe(member: tarfile.TarInfo, tar: tarfile.TarFile, seen: View) -> tuple[object, ...]:
    if member.islnk():
        return seen[member.linkname]
    source = tar.extractfile(member) if member.isreg() else None
    attributes = tuple(sorted(member.pax_headers.items()))
    return (member.type, member.mode, source.read() if source else member.linkname, attributes)


def remove_below(seen: View, name: str) -> None:
    for path in [path for path in seen if path.startswith(f"{name}/")]:
        del seen[path]


BASE = [folder("a"), file("a/x"), file("a/y"), folder("a/d"), file("a/d/z"), file("b"), folder("c")]

CASES: dict[str, list[list[Entry]]] = {
    "a file replaced": [[file("b", "1")], [file("b", "2")]],
    "a file deleted": [[file("n")], [gone("n"), gone("b")]],
    "deleted and made anew": [[gone("b")], [file("b", "new")]],
    "a folder deleted": [[folder("a"), gone("a/d")], [gone("a")]],
    "a folder deleted and made anew": [[gone("a")], [folder("a"), file("a/n")]],
    "a folder deleted, made anew two layers on": [
        [gone("a")],
        [folder("a"), file("a/n")],
        [folder("a"), file("a/x", "2")],
    ],
    "an opaque folder": [[folder("a"), file("a/1")], [folder("a"), opaque("a"), file("a/2")]],
    "opaque below": [[folder("a"), opaque("a"), file("a/1")], [folder("a"), file("a/2")]],
    "a folder becomes a file": [[file("a", "file")], [file("n")]],
    "a folder becomes a file, then a folder": [[file("a", "file")], [folder("a"), file("a/n")]],
    "a file becomes a folder": [[gone("b")], [folder("b"), file("b/n")]],
    "a hard link": [[file("h"), link("i", "h")], [file("n")]],
    "a hard link whose file is replaced": [
        [file("h", "old"), link("i", "h"), link("j", "h")],
        [file("h", "new")],
    ],
    "a hard link whose file is deleted": [[file("h"), link("i", "h")], [gone("h")]],
    "a hard link that is deleted": [[file("h"), link("i", "h")], [gone("i")]],
    "a deleted folder with hard links": [
        [folder("f"), file("f/h"), link("i", "f/h"), link("j", "f/h")],
        [gone("f")],
    ],
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_merged_layers_do_what_they_did_in_turn(name: str, whole: bool, new_file: NewFile) -> None:
    base = layer_of(BASE, new_file)
    layers = [layer_of(entries, new_file) for entries in CASES[name]]
    expected = unpack([base, *layers])
    if whole:
        found = unpack([squash.merge(contents([base, *layers]), new_file(), whole=True)])
    else:
        found = unpack([base, squash.merge(contents(layers), new_file())])
    assert found == expected


def test_all_attributes_of_a_file_stay(new_file: NewFile) -> None:
    special = tarfile.TarInfo("f" * 150)
    special.mode, special.uid, special.mtime, special.size = 0o4755, 3_000_000, 5, 2
    special.pax_headers = {"SCHILY.xattr.user.a": b"\0\xff\n".decode("utf-8", "surrogateescape")}
    content = special.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + b"ab" + bytes(510)
    device = archives.entry("dev", type=b"3", devmajor=1, devminor=3)
    layers = [layer_from(content + bytes(1024), new_file), layer_of([device], new_file)]
    merged = squash.merge(contents(layers), new_file())
    with tarfile.open(
        fileobj=io.BytesIO(b"".join(merged.content.chunks())), errors="surrogateescape"
    ) as tar:
        found = {entry.name: entry for entry in tar}
    kept = found[special.name]
    assert (kept.mode, kept.uid, kept.mtime) == (0o4755, 3_000_000, 5)
    attribute = kept.pax_headers["SCHILY.xattr.user.a"]
    assert attribute.encode("utf-8", "surrogateescape") == b"\0\xff\n"
    assert (found["dev"].devmajor, found["dev"].devminor) == (1, 3)


def image_of(layers: Sequence[Layer], **changes: object) -> ArchivedImage:
    digests = [f"sha256:{layer.digest}" for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["x"], "Volumes": {"/data": {}}},
        "rootfs": {"type": "layers", "diff_ids": digests},
        **changes,
    }
    return ArchivedImage(json.dumps(config).encode(), tuple(layers))


HISTORY = [{"created_by": "ADD"}, {"created_by": "CMD", "empty_layer": True}]


@pytest.mark.parametrize("history", [HISTORY, None, "nonsense", HISTORY * 2])
def test_150_generations_stay_few_layers(new_file: NewFile, history: object) -> None:
    image = image_of([layer_of(BASE, new_file)], history=history)
    for generation in range(150):
        changed = [file(f"of-{generation}"), file("latest", str(generation))]
        if generation % 3 == 2:
            changed.append(gone(f"of-{generation - 1}"))
        image = squash.on_top(image, layer_of(changed, new_file), 10, new_file)
        assert len(image.layers) <= 11
    config = json.loads(image.config)
    assert config["config"] == {"Cmd": ["x"], "Volumes": {"/data": {}}}
    assert config["rootfs"]["diff_ids"] == [f"sha256:{layer.digest}" for layer in image.layers]
    assert sum(not entry.get("empty_layer") for entry in config["history"]) == len(image.layers)
    seen = unpack(image.layers)
    assert seen["latest"][2] == b"149"
    assert {int(name[3:]) for name in seen if name.startswith("of-")} == {
        number for number in range(150) if number % 3 != 1
    }


def test_an_image_at_the_limit_becomes_one_layer(new_file: NewFile) -> None:
    base = image_of([layer_of([file(str(number))], new_file) for number in range(120)])
    image = squash.on_top(base, layer_of([gone("7")], new_file), 10, new_file)
    assert len(image.layers) == 1
    assert unpack(image.layers).keys() == {str(number) for number in range(120)} - {"7"}


def test_a_damaged_layer(new_file: NewFile) -> None:
    layer = layer_from(archives.tar_of([file("a", "x" * 2000)])[:1500], new_file)
    with pytest.raises(ArchiveError):
        squash.merge(contents([layer]), new_file())
    lost = layer_of([link("i", "h")], new_file)
    with pytest.raises(ArchiveError, match="lacks"):
        squash.merge(contents([lost, layer_of([gone("h")], new_file)]), new_file())


def many_hidden(count: int, new_file: NewFile) -> list[Layer]:
    """Return a layer of files with one link each, and a layer that hides all but the links."""
    names = [str(number) for number in range(count)]
    below = [entry for name in names for entry in (file(f"f/{name}"), link(name, f"f/{name}"))]
    return [layer_of([folder("f"), *below], new_file), layer_of([gone("f")], new_file)]


def test_links_to_hidden_files_do_not_have_the_layer_read_for_each(
    new_file: NewFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Region] = []

    def count(content: Region) -> Iterator[tarfile.TarInfo]:
        read.append(content)
        return tar_reader.entries(content)

    layers = many_hidden(20, new_file)
    monkeypatch.setattr(squash, "entries", count)
    squash.merge(contents(layers), new_file())
    assert len(read) <= 2 * len(layers)


def test_too_many_hidden_files(new_file: NewFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squash, "_MAX_HIDDEN_FILES", 3)
    squash.merge(contents(many_hidden(3, new_file)), new_file())
    with pytest.raises(ArchiveError, match="more than 3 hidden files"):
        squash.merge(contents(many_hidden(4, new_file)), new_file())
