# SPDX-License-Identifier: Apache-2.0
"""Paths and descriptors that nova-compute's user makes up, to have root use other files."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from novadocker import privsep
from novadocker.linux import openat
from novadocker.privsep.storage import (
    btrfs,
    callers,
    layer_archive,
    layer_diff,
    overlay_names,
    sparse_files,
    staging,
)

UUID = "01234567-89ab-cdef-0123-456789abcdef"
TOKEN = "0" * 32
DIGEST = "ab" * 32
LAYER = "c" * 64
OTHER_USER = 4242


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the data root of an engine, beside a directory that no call may reach."""
    for context in ("network", "storage", "transfer"):
        monkeypatch.setattr(getattr(privsep, f"{context}_pctxt"), "client_mode", False)
    root = tmp_path / "docker"
    for folder in (
        f"overlay2/{LAYER}/diff",
        f"overlay2/{LAYER}/work",
        "overlay2/l",
        "volumes/data/_data",
        f"image/overlay2/layerdb/mounts/{LAYER}",
    ):
        (root / folder).mkdir(parents=True)
    (root / "image/overlay2/layerdb/mounts" / LAYER / "mount-id").write_text(LAYER)
    (root / "overlay2/l" / ("A" * 26)).symlink_to(f"../{LAYER}/diff")
    (root / "overlay2" / LAYER / "diff/file").write_text("a server's")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/shadow").write_text("the host's")
    yield root
    staging.forget_folders(TOKEN)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Return the ends of a pipe for reading and for writing."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def mine(descriptor: int) -> tuple[int, int]:
    return os.getpid(), descriptor


def calls(root: Path, pipe: tuple[int, int], file: int) -> dict[str, Callable[[], object]]:
    """Return calls of all functions that take a path."""
    diff, volume = f"{root}/overlay2/{LAYER}/diff", f"{root}/volumes/data/_data"
    source, target = mine(pipe[0]), mine(pipe[1])
    call = functools.partial
    return {
        "send a layer": call(staging.send_folders, TOKEN, [diff], target, True),
        "send a volume": call(staging.send_folders, TOKEN, [volume], target, True),
        "receive": call(staging.receive_folders, str(root), UUID, TOKEN, source, 0),
        "adopt": call(staging.adopt_folder, str(root), UUID, TOKEN, 0, diff),
        "discard": call(staging.discard_folders, str(root), UUID),
        "snapshot": call(layer_diff.write_layer, diff, [], {}, mine(file), 1 << 20),
        "snapshot of a volume": call(
            layer_diff.write_layer, diff, [], {"/data": volume}, mine(file), 1 << 20
        ),
        "lower layer": call(
            layer_diff.write_layer, diff, [f"{root}/overlay2/l/{'A' * 26}"], {}, mine(file), 1 << 20
        ),
        "configuration": call(layer_archive.read_config, str(root), DIGEST),
        "size of a layer": call(layer_archive.measure_layer, str(root), DIGEST),
        "archive of a layer": call(layer_archive.write_layer, str(root), DIGEST, target),
        "holes": call(sparse_files.dig, [diff]),
        "short names": call(overlay_names.make, UUID, [f"{root}/overlay2/{LAYER}/work"]),
        "size on btrfs": call(btrfs.resize_disk, str(root), LAYER, 1 << 20),
        "usage on btrfs": call(btrfs.read_size_and_usage, str(root), LAYER),
        "count on btrfs": call(btrfs.count_again, str(root)),
    }


@contextmanager
def unnamed(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


ALL = sorted(calls(Path("/"), (0, 0), 0))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["owner", "mode", "owner above"])
def test_a_data_root_of_another_user(
    root: Path, tmp_path: Path, pipe: tuple[int, int], name: str, kind: str
) -> None:
    if kind == "mode":
        root.chmod(0o777)
    elif os.getuid():
        pytest.skip("only root can give directories away")
    else:
        os.chown(root if kind == "owner" else tmp_path, OTHER_USER, OTHER_USER)
    with unnamed(tmp_path) as file:
        with pytest.raises(PermissionError, match="other than root can change"):
            calls(root, pipe, file)[name]()
        assert os.fstat(file).st_size == 0
    assert not (root / staging.FOLDER).exists()


@pytest.mark.parametrize("name", ALL)
def test_a_link_in_place_of_the_data_root(
    root: Path, tmp_path: Path, pipe: tuple[int, int], name: str
) -> None:
    (tmp_path / "link").symlink_to(root)
    with unnamed(tmp_path) as file, pytest.raises(NotADirectoryError):
        calls(tmp_path / "link", pipe, file)[name]()
    assert not (root / staging.FOLDER).exists()


def test_a_link_in_place_of_a_layer(root: Path, tmp_path: Path, pipe: tuple[int, int]) -> None:
    diff = root / "overlay2" / LAYER / "diff"
    (diff / "file").unlink()
    diff.rmdir()
    diff.symlink_to(tmp_path / "secret")
    names = {"send a layer", "adopt", "snapshot", "lower layer", "holes"}
    (root / staging.FOLDER / f"{UUID}.{TOKEN}" / "0").mkdir(parents=True)
    with unnamed(tmp_path) as file:
        for name in names:
            with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
                calls(root, pipe, file)[name]()
        assert os.fstat(file).st_size == 0
    assert (tmp_path / "secret/shadow").read_text() == "the host's"


def test_a_link_in_place_of_the_staged_data(
    root: Path, tmp_path: Path, pipe: tuple[int, int]
) -> None:
    outside = tmp_path / "secret" / f"{UUID}.{TOKEN}"
    outside.mkdir()
    (root / staging.FOLDER).symlink_to(tmp_path / "secret")
    with unnamed(tmp_path) as file:
        for name in ("receive", "adopt", "discard"):
            with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
                calls(root, pipe, file)[name]()
    assert list(outside.iterdir()) == []


def test_links_in_place_of_the_engine_s_records(
    root: Path, tmp_path: Path, pipe: tuple[int, int]
) -> None:
    folder = root / "image/overlay2/imagedb/content/sha256"
    folder.mkdir(parents=True)
    (folder / DIGEST).symlink_to(tmp_path / "secret/shadow")
    (root / "image/overlay2/layerdb/sha256").symlink_to(tmp_path / "secret")
    for name in ("configuration", "size of a layer", "archive of a layer"):
        with pytest.raises(OSError, match="symbolic links"):
            calls(root, pipe, -1)[name]()


@pytest.mark.parametrize("target", ["../../secret", "/etc", f"../{LAYER}/diff/../../.."])
def test_a_short_name_that_leads_elsewhere(
    root: Path, tmp_path: Path, pipe: tuple[int, int], target: str
) -> None:
    short = root / "overlay2/l" / ("A" * 26)
    short.unlink()
    short.symlink_to(target)
    with unnamed(tmp_path) as file, pytest.raises(OSError, match="not a short name"):
        calls(root, pipe, file)["lower layer"]()


def test_shared_directories_above_are_like_tmp(tmp_path: Path) -> None:
    """Others can only add files of their own there, and the data root is none of theirs."""
    shared, root = tmp_path / "shared", tmp_path / "shared/docker"
    root.mkdir(parents=True)
    shared.chmod(0o1777)
    os.close(openat.open_trusted(str(root)))
    with pytest.raises(PermissionError, match="other than root"):
        openat.open_trusted(str(shared))


def test_a_file_that_the_caller_may_only_read_is_not_written(
    root: Path, tmp_path: Path, pipe: tuple[int, int]
) -> None:
    path = tmp_path / "secret/shadow"
    with path.open("rb") as readable:
        for ends in ((pipe[0], readable.fileno()), (pipe[0], pipe[0])):
            with pytest.raises(ValueError, match="end of a pipe"):
                calls(root, ends, -1)["send a layer"]()
        with pytest.raises(ValueError, match="empty file"):
            calls(root, pipe, readable.fileno())["snapshot"]()
        with pytest.raises(ValueError, match="end of a pipe"):
            calls(root, (readable.fileno(), -1), -1)["receive"]()
    assert path.read_text() == "the host's"


def test_a_pipe_whose_caller_does_not_block(root: Path, pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    with callers.pipe(mine(pipe[1]), os.O_WRONLY) as end:
        assert os.get_blocking(end)
    assert not os.get_blocking(pipe[1])


def test_a_named_pipe_that_the_caller_has_not_opened(
    root: Path, tmp_path: Path, pipe: tuple[int, int]
) -> None:
    """A descriptor with O_PATH needs no right to the file."""
    os.mkfifo(tmp_path / "fifo")
    descriptor = os.open(tmp_path / "fifo", os.O_PATH)
    try:
        for name, ends in (
            ("send a layer", (pipe[0], descriptor)),
            ("receive", (descriptor, pipe[1])),
        ):
            with pytest.raises(ValueError, match="end of a pipe"):
                calls(root, ends, -1)[name]()
    finally:
        os.close(descriptor)


def test_an_empty_file_that_the_caller_may_only_read(
    root: Path, tmp_path: Path, pipe: tuple[int, int]
) -> None:
    (tmp_path / "empty").touch()
    descriptor = os.open(tmp_path / "empty", os.O_RDONLY)
    (tmp_path / "empty").unlink()
    try:
        with pytest.raises(ValueError, match="not open for writing"):
            calls(root, pipe, descriptor)["snapshot"]()
    finally:
        os.close(descriptor)


def test_what_the_engine_made_is_read(root: Path, tmp_path: Path, pipe: tuple[int, int]) -> None:
    with unnamed(tmp_path) as file:
        found = calls(root, pipe, file)
        for name in ("send a layer", "send a volume", "snapshot", "holes", "discard"):
            found[name]()
        assert b"a server's" in os.pread(file, 10_000, 0)
    assert b"a server's" in os.read(pipe[0], 10_000)
    with unnamed(tmp_path) as file:
        calls(root, pipe, file)["lower layer"]()
