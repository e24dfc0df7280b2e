# SPDX-License-Identifier: Apache-2.0
"""Walks of directories that an attacker changes at the worst moment."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from novadocker.linux import openat, walk
from tests.unit.linux import swapping


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a directory beside one that a walk must not reach."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("the host's")
    (tmp_path / "tree/x").mkdir(parents=True)
    (tmp_path / "tree/x/file").write_text("mine")
    (tmp_path / "tree/z").write_text("z")
    return tmp_path / "tree"


@pytest.fixture
def top(tree: Path) -> Iterator[int]:
    descriptor = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    before = len(os.listdir("/proc/self/fd"))
    yield descriptor
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(descriptor)


def paths(top: int) -> list[str]:
    return [found.path for found in walk.Walk(top, tolerate=openat.shows_change) if found.status]


def test_a_directory_comes_before_its_content(tree: Path, top: int) -> None:
    (tree / "link").symlink_to("../outside")
    assert paths(top) == ["", "link", "x", "x/file", "z"]
    left = [found.path for found in walk.Walk(top, leaving=True) if found.left]
    assert left == ["x", ""]
    skipped = walk.Walk(top, skip=lambda path: path == "x")
    assert [found.path for found in skipped] == ["", "link", "z"]


def test_a_directory_that_becomes_a_link(
    tree: Path, top: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swap() -> None:
        (tree / "x").rename(tree / "y")
        (tree / "x").symlink_to("../outside")

    assert swapping.before_open(monkeypatch, "x", swap) == []
    assert paths(top) == ["", "z"]
    # The next walk finds both.
    assert paths(top) == ["", "x", "y", "y/file", "z"]


def test_a_change_is_an_error_if_there_should_be_none(
    tree: Path, top: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    swapping.before_open(monkeypatch, "x", lambda: (tree / "x").rename(tree / "y"))
    with pytest.raises(FileNotFoundError):
        list(walk.Walk(top))


def test_a_directory_that_moves_while_the_walk_is_in_it(tree: Path, top: int) -> None:
    contents = {}
    for found in walk.Walk(top, tolerate=openat.shows_change):
        if found.path == "x":
            (tree / "x").rename(tree / "y")
            (tree / "x").symlink_to("../outside")
        if found.status and stat.S_ISREG(found.status.st_mode):
            with found.held() as file, file.opened() as descriptor:
                contents[found.path] = os.read(descriptor, 100)
    assert contents == {"x/file": b"mine", "z": b"z"}


@pytest.mark.parametrize("kind", ["file", "link", "pipe", "device", "directory", "nothing"])
def test_a_file_that_is_replaced(
    tree: Path, top: int, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "device" and os.getuid():
        pytest.skip("only root can create device nodes")

    def swap() -> None:
        # The inode stays in use, so no other file gets its number.
        (tree / "z").rename(tree.parent / "kept")
        match kind:
            case "file":
                (tree / "z").write_text("another")
            case "link":
                (tree / "z").symlink_to("../outside/file")
            case "pipe":
                os.mkfifo(tree / "z")
            case "device":
                os.mknod(tree / "z", stat.S_IFCHR | 0o600, os.makedev(1, 3))
            case "directory":
                (tree / "z").mkdir()

    ran = swapping.before_open(monkeypatch, "z", swap)
    for found in walk.Walk(top):
        if found.path == "z":
            with pytest.raises(OSError, match=r"changed|No such") as caught, found.held():
                pass
            assert openat.shows_change(caught.value)
    assert ran == ["z"]


def test_a_deep_tree_takes_few_descriptors(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swapping.nest(tree, 10_000)
    highest = 0
    listdir = os.listdir

    def counted(place: int) -> list[str]:
        nonlocal highest
        highest = max(highest, place)
        return listdir(place)

    top = os.open(tree, os.O_RDONLY)
    before = len(listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", counted)
        files = [found.path for found in walk.Walk(top) if found.descriptor < 0]
    assert [path.count("/") for path in files] == [10_000, 1, 0]
    assert highest < before + 100
    assert len(listdir("/proc/self/fd")) == before
    walk.remove(top, "d")
    os.close(top)
    assert sorted(path.name for path in tree.iterdir()) == ["x", "z"]


def test_deep_directories_that_vanish_meanwhile(
    tree: Path, top: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk closed them, and does not find them when it comes back."""
    monkeypatch.setattr(walk, "_MOST_OPEN", 3)
    folder = tree / "x"
    for name in "abcdefgh":
        (folder / f"z{name}").write_text(name)
        folder /= name
        folder.mkdir()
    (folder / "file").write_text("deep")
    found = []
    for item in walk.Walk(top, tolerate=openat.shows_change):
        found.append((item.path, item.status is not None))
        if item.path.endswith("h/file"):
            (tree / "x/a/b").rename(tree / "moved")
            (tree / "x/a/b").symlink_to("../../../outside")
    assert ("x/a/b/c/d/e/f/g/zh", True) in found
    assert ("x/a/b/c/zd", False) in found
    assert ("x/a/zb", True) in found
    assert ("x/za", True) in found
    assert ("z", True) in found
    assert len({path for path, _ in found}) == len(found)


def test_a_path_has_a_limit(tree: Path, top: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "_LONGEST_PATH", 5)
    with pytest.raises(OSError, match="nested too deep"):
        list(walk.Walk(top))


def test_other_mounts_are_not_entered() -> None:
    root = os.open("/", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="cross-device") as caught:
            openat.open_inside(root, "proc", os.O_RDONLY)
        assert caught.value.errno == errno.EXDEV
        assert not openat.shows_change(caught.value)
        os.close(openat.open_inside(root, "proc", os.O_RDONLY, mounts=True))
    finally:
        os.close(root)


def test_links_are_removed_and_not_followed(tree: Path, top: int) -> None:
    (tree / "x/link").symlink_to("../../outside")
    (tree / "link").symlink_to("../outside")
    for name in ("x", "link", "z", "absent"):
        walk.remove(top, name)
    assert list(tree.iterdir()) == []
    assert (tree.parent / "outside/file").read_text() == "the host's"
