# SPDX-License-Identifier: Apache-2.0
"""Streams of directories from a hostile host: they are applied, or refused without an effect."""

import contextlib
import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from novadocker.linux.pipes import StreamError
from novadocker.privsep.storage import sparse_files, tree_stream

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
    tree_stream.Writer(top).apply(io.BytesIO(stream + b'{"end": 1}\n'))


def test_a_stream_is_applied(top: int, tmp_path: Path) -> None:
    apply(top, FOLDER, FILE, data=b"abc")
    assert (tmp_path / "staged/0/file").read_text() == "abc"


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
        tree_stream.Writer(top).apply(io.BytesIO(line + b"\n"))


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


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(LINES, max_size=5), st.binary(max_size=20))
def test_any_stream(top: int, lines: list[object], data: bytes) -> None:
    """The fixture checks that nothing appears beside the staged directories."""
    with contextlib.suppress(StreamError, OSError):
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
