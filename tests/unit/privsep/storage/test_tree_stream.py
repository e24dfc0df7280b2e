# SPDX-License-Identifier: Apache-2.0
"""Streams of directories from a hostile host: they are applied, or refused without an effect."""

import base64
import contextlib
import io
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novadocker.linux.pipes import StreamError
from novadocker.privsep.storage import sparse_files, tree_stream
from novadocker.privsep.storage.allowance import Allowance
from tests import fuzz
from tests.unit.linux import swapping

ME = {"uid": os.getuid(), "gid": os.getgid(), "mtime": 0}
FOLDER = {"path": "0", "mode": stat.S_IFDIR | 0o755, **ME}
FILE = {"path": "0/file", "mode": stat.S_IFREG | 0o644, "size": 3, "pieces": [[0, 3]], **ME}


@pytest.fixture
def top(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "staged").mkdir()
    descriptor = os.open(tmp_path / "staged", os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)
    assert [path.name for path in tmp_path.iterdir()] == ["staged"]


def apply(top: int, *lines: object, data: bytes = b"") -> None:
    stream = b"".join(json.dumps(line).encode() + b"\n" for line in lines) + data
    tree_stream.Writer(top, Allowance(0)).apply(io.BytesIO(stream + b'{"end": 1}\n'))


MOST = 1 << 20


def whole(*lines: object) -> io.BytesIO:
    """Return a stream; a line may be a whole file."""
    parts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    return io.BytesIO(b"\n".join([*parts, b'{"end": 1}\n']))


def sized(path: str, size: int) -> bytes:
    """Return the line of a file, and its content."""
    line = {**FILE, "path": path, "size": size, "pieces": [[0, size]]}
    return json.dumps(line).encode() + b"\n" + bytes(size - 1)


def small(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\nab"


def test_a_stream_is_applied(top: int, tmp_path: Path) -> None:
    apply(top, FOLDER, FILE, data=b"abc")
    assert (tmp_path / "staged/0/file").read_text() == "abc"


def test_a_stream_has_as_much_as_the_flavor_allows(top: int, tmp_path: Path) -> None:
    allowance = Allowance(MOST)
    writer = tree_stream.Writer(top, allowance)
    # A part is sent again and again while the server changes it.
    for _ in range(8):
        writer.apply(whole(FOLDER, sized("0/file", MOST - (64 << 10))))
    assert allowance._taken <= MOST
    with pytest.raises(StreamError, match="more data than the 1 MiB of its flavor's root disk"):
        writer.apply(whole(sized("0/more", MOST)))
    assert taken(tmp_path) <= MOST * 9 // 8 + tree_stream._CHUNK


@pytest.mark.parametrize(
    "line",
    [
        FILE,
        {**FILE, "size": 4097, "pieces": [[4095, 4097]]},
        FOLDER,
        {**FILE, "mode": stat.S_IFLNK | 0o777, "size": 0, "pieces": [], "target": "x" * 200},
    ],
    ids=["small file", "across blocks", "directory", "link"],
)
def test_what_takes_a_block_counts_a_block(top: int, tmp_path: Path, line: dict[str, Any]) -> None:
    writer = tree_stream.Writer(top, Allowance(MOST))
    content = bytes(sum(end - begin for begin, end in line.get("pieces", [])))
    lines = [
        json.dumps({**line, "path": f"0/{number}"}).encode() + b"\n" + content
        for number in range(9000)
    ]
    with contextlib.suppress(StreamError):
        writer.apply(io.BytesIO(b"".join([json.dumps(FOLDER).encode() + b"\n", *lines])))
    assert taken(tmp_path) <= MOST * 9 // 8 + (64 << 10)


def test_a_server_full_of_small_files_arrives(top: int, tmp_path: Path) -> None:
    """What the source's quota counts is what the destination counts."""
    files = [small({**FILE, "path": f"0/{number}"}) for number in range(200)]
    tree_stream.Writer(top, Allowance(0)).apply(whole(FOLDER, *files))
    most = taken(tmp_path)
    writer = tree_stream.Writer(top, Allowance(most))
    for _ in range(3):
        writer.apply(whole(FOLDER, *files))
    assert taken(tmp_path) == most


def taken(folder: Path) -> int:
    """Return the bytes that the staged tree takes on the disk."""
    return sum(path.lstat().st_blocks << 9 for path in (folder / "staged").rglob("*"))


def test_links_and_holes_take_no_room(top: int) -> None:
    writer = tree_stream.Writer(top, Allowance(MOST))
    hole = {**FILE, "size": 1 << 40, "pieces": []}
    names = [{**FILE, "path": f"0/{number}", "link": "0/file"} for number in range(1500)]
    writer.apply(whole(FOLDER, hole, *[{**name, "size": 0, "pieces": []} for name in names]))


def test_attributes_count(top: int) -> None:
    writer = tree_stream.Writer(top, Allowance(MOST))
    text = base64.b64encode(bytes(2000)).decode()
    lines = [
        {**FILE, "path": f"0/{number}", "size": 0, "pieces": [], "attributes": {"user.x": text}}
        for number in range(4000)
    ]
    with pytest.raises(StreamError, match="more data than"):
        writer.apply(whole(FOLDER, *lines))


@pytest.mark.parametrize(
    "line",
    [
        1,
        [],
        None,
        "end",
        {"gone": 5},
        {"gone": "0/file"},
        {"gone": [5]},
        {"gone": ["0/\0"]},
        {**FILE, "path": 5},
        {**FILE, "path": "0/\0"},
        {**FILE, "path": "0/\ud800"},
        {**FILE, "path": "0/" + "x/" * 10_000 + "x"},
        {**FILE, "mode": "33188"},
        {**FILE, "mode": 1 << 16},
        {**FILE, "uid": -1},
        # chown(2) would take it as "unchanged".
        {**FILE, "uid": (1 << 32) - 1},
        {**FILE, "gid": True},
        {**FILE, "mtime": 1 << 63},
        {**FILE, "mtime": 0.5},
        {**FILE, "rdev": -1},
        {**FILE, "size": -1},
        {**FILE, "size": 1 << 63},
        {**FILE, "size": 2},
        {**FILE, "pieces": 5},
        {**FILE, "pieces": [5]},
        {**FILE, "pieces": [[0]]},
        {**FILE, "pieces": [[0, 1, 2]]},
        {**FILE, "pieces": [[3, 0]]},
        {**FILE, "pieces": [[2, 3], [0, 1]]},
        {**FILE, "pieces": [["0", "3"]]},
        {**FILE, "link": 5},
        {**FILE, "target": None},
        {**FILE, "attributes": []},
        {**FILE, "attributes": {"user.x": 5}},
        {**FILE, "attributes": {"user.x": "no base64"}},
        {**FILE, "attributes": {"user.\0": ""}},
        # Overlayfs would read other directories of this host.
        {**FILE, "attributes": {"trusted.overlay.redirect": "Lw=="}},
        {**FILE, "more": 1},
        {"path": "0/file"},
    ],
)
def test_a_malformed_line(top: int, tmp_path: Path, line: object) -> None:
    with pytest.raises(StreamError):
        apply(top, FOLDER, line, data=b"abc")
    assert list((tmp_path / "staged/0").iterdir()) == []


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_only_directories_are_staged(top: int, tmp_path: Path, kind: int) -> None:
    """Otherwise a symbolic link would become the directory of the container."""
    with pytest.raises(StreamError, match="not a directory"):
        apply(top, {**FOLDER, "mode": kind | 0o644, "target": "/etc"})
    assert list((tmp_path / "staged").iterdir()) == []


@pytest.mark.parametrize("line", [b"[" * 200_000, b'{"gone":' * 100_000, b"9" * 60_000])
def test_depth(top: int, line: bytes) -> None:
    with pytest.raises(StreamError):
        tree_stream.Writer(top, Allowance(0)).apply(io.BytesIO(line + b"\n"))


JUNK: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)
PATHS = st.sampled_from(["0", "0/a", "0/a/b", "0/b", "1", "../0", "0/..", "/etc/x", "x"])
ENTRIES = st.fixed_dictionaries(
    {
        "path": PATHS,
        "mode": st.sampled_from([stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, 0]),
        **{name: st.just(value) for name, value in ME.items()},
    },
    optional={
        "link": PATHS,
        "target": st.sampled_from(["/etc", "..", ""]),
        "size": st.integers(0, 10),
        "pieces": st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=2),
        "attributes": JUNK,
    },
)
LINES = st.one_of(
    ENTRIES,
    st.tuples(ENTRIES, st.sampled_from([*FILE, "rdev", "link", "more"]), JUNK).map(
        lambda found: {**found[0], found[1]: found[2]}
    ),
    st.lists(PATHS, max_size=3).map(lambda paths: {"gone": paths}),
    JUNK,
)


@fuzz.examples(200)
@given(st.lists(LINES, max_size=5), st.binary(max_size=20))
def test_any_stream(top: int, lines: list[object], data: bytes) -> None:
    """The fixture checks that nothing appears beside the staged directories."""
    with fuzz.bounds(), contextlib.suppress(StreamError, OSError):
        apply(top, FOLDER, *lines, data=data)


@pytest.mark.parametrize("size", [0, 1, 10_000_000])
def test_the_ranges_of_a_file_with_data(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(size)
        if size > 6_000_000:
            file.seek(5_000_000)
            file.write(b"data")
        file.flush()
        ranges = list(sparse_files.data_ranges(file.fileno(), size))
        assert all(0 <= begin < end <= size for begin, end in ranges)
        if size > 6_000_000:
            assert any(begin <= 5_000_000 < end for begin, end in ranges)
        # A file that has become shorter since its size was read ends with a hole.
        os.ftruncate(file.fileno(), 0)
        assert list(sparse_files.data_ranges(file.fileno(), size)) == []


class Watched(io.BytesIO):
    """A stream that runs an attack when a path has been written to it."""

    def __init__(self, path: str, attack: Callable[[], object]) -> None:
        super().__init__()
        self._mark = f'"path": "{path}"'.encode()
        self._attack = attack
        self.ran = False

    def write(self, data: Any) -> int:
        written = super().write(data)
        if not self.ran and self._mark in data:
            self.ran = True
            self._attack()
        return written


class Move:
    """A directory that is sent to another one, with one that must not be read beside it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.source, self.target, self.outside = (
            folder / name for name in ("source", "target", "outside")
        )
        for path in (self.source, self.target, self.outside):
            path.mkdir()
        self.reader = tree_stream.Reader([str(self.source)])
        self._monkeypatch = monkeypatch

    def send(self, live: bool, stream: io.BytesIO | None = None) -> bytes:
        """Send what changed since the last call; return the stream."""
        stream = io.BytesIO() if stream is None else stream
        # As if the last change were long ago.
        self._monkeypatch.setattr(tree_stream, "_TRACELESS_NS", 0)
        self.reader.write(stream, live)
        stream.seek(0)
        top = os.open(self.target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            tree_stream.Writer(top, Allowance(0)).apply(stream)
        finally:
            os.close(top)
        # A change within the kernel's clock tick does not change a ctime.
        time.sleep(0.02)
        return stream.getvalue()

    def arrived(self) -> dict[str, str]:
        """Return the contents of the target."""
        top = self.target / "0"
        return {
            str(path.relative_to(top)): f"-> {path.readlink()}"
            if path.is_symlink()
            else path.read_text()
            for path in sorted(top.rglob("*"))
            if path.is_symlink() or path.is_file()
        }


@pytest.fixture
def move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Move:
    return Move(tmp_path, monkeypatch)


def test_a_directory_that_becomes_a_link_while_it_is_read(move: Move) -> None:
    """In place of the tenant's file, a file of the host would be read, and linked at ``z``."""
    (move.outside / "shadow").write_text("the host's")
    (move.source / "x").mkdir()
    (move.source / "x/a").write_text("a")
    (move.source / "x/shadow").write_text("mine")
    os.link(move.source / "x/shadow", move.source / "z")

    def swap() -> None:
        (move.source / "x").rename(move.source / "y")
        (move.source / "x").symlink_to(move.outside)

    stream = Watched("0/x/a", swap)
    assert b"the host's" not in move.send(live=True, stream=stream)
    assert stream.ran
    assert move.arrived() == {"x/a": "a", "x/shadow": "mine", "z": "mine"}
    (move.source / "x").unlink()
    (move.source / "y").rename(move.source / "x")
    assert b"the host's" not in move.send(live=False)
    assert move.arrived() == {"x/a": "a", "x/shadow": "mine", "z": "mine"}


@pytest.mark.parametrize("kind", ["link", "file", "nothing"])
def test_a_directory_that_changes_is_read_again(
    move: Move, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (move.source / "x").mkdir()
    (move.source / "x/file").write_text("mine")
    (move.source / "z").write_text("z")
    move.send(live=True)

    def swap() -> None:
        (move.source / "x").rename(move.source / "y")
        if kind == "link":
            (move.source / "x").symlink_to(move.outside)
        elif kind == "file":
            (move.source / "x").write_text("now a file")

    with monkeypatch.context() as patched:
        ran = swapping.before_open(patched, "x", swap)
        move.send(live=True)
        assert ran == ["x"]
    assert move.arrived() == {"z": "z"}
    move.send(live=False)
    now = {"link": {"x": f"-> {move.outside}"}, "file": {"x": "now a file"}, "nothing": {}}
    assert move.arrived() == {"y/file": "mine", "z": "z", **now[kind]}


@pytest.mark.parametrize("kind", ["link", "pipe", "file", "nothing"])
def test_a_file_that_changes_is_read_again(
    move: Move, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (move.outside / "secret").write_text("the host's")
    (move.source / "file").write_text("before")
    move.send(live=True)
    assert move.arrived() == {"file": "before"}
    (move.source / "file").write_text("changed")

    def swap() -> None:
        (move.source / "file").rename(move.source / "kept")
        if kind == "link":
            (move.source / "file").symlink_to(move.outside / "secret")
        elif kind == "pipe":
            os.mkfifo(move.source / "file")
        elif kind == "file":
            (move.source / "file").write_text("another")

    with monkeypatch.context() as patched:
        ran = swapping.before_open(patched, "file", swap)
        assert b"the host's" not in move.send(live=True)
        assert ran == ["file"]
    # The next round may find nothing at the name, so nothing may stay there.
    assert move.arrived() == {}
    assert b"the host's" not in move.send(live=False)
    now = {"link": {"file": f"-> {move.outside / 'secret'}"}, "file": {"file": "another"}}
    assert move.arrived() == {"kept": "changed", **now.get(kind, {})}
    assert (move.target / "0/file").is_fifo() == (kind == "pipe")


def test_a_file_that_becomes_a_socket_is_deleted(move: Move) -> None:
    (move.source / "file").write_text("before")
    move.send(live=True)
    (move.source / "file").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(move.source / "file"))
        move.send(live=False)
    assert not (move.target / "0/file").exists()


def test_only_changes_are_sent_again(move: Move) -> None:
    (move.source / "x").mkdir()
    for name in ("x/one", "x/two", "gone"):
        (move.source / name).write_text(name)
    os.link(move.source / "x/two", move.source / "linked")
    move.send(live=True)
    (move.source / "gone").unlink()
    (move.source / "x/one").write_text("changed")
    stream = move.send(live=False)
    assert b"x/two" not in stream
    assert move.arrived() == {"linked": "x/two", "x/one": "changed", "x/two": "x/two"}
    assert (move.target / "0/linked").samefile(move.target / "0/x/two")


def test_directories_nested_deeper_than_python_recurses(move: Move) -> None:
    swapping.nest(move.source, 1050)
    move.send(live=True)
    swapping.remove(move.source)
    (move.source / "d").write_text("now a file")
    move.send(live=False)
    assert move.arrived() == {"d": "now a file"}


def test_a_path_that_the_destination_refuses(move: Move) -> None:
    swapping.nest(move.source, 4200)
    with pytest.raises(OSError, match="File name too long"):
        move.send(live=True)
    swapping.remove(move.source)
