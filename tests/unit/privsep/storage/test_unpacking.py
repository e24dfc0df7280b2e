# SPDX-License-Identifier: Apache-2.0
"""Files of layers that a process writes, which is this process."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from novadocker import privsep
from novadocker.privsep.storage import unpacking

LAYER = "a" * 64


@pytest.fixture(autouse=True)
def unprivileged() -> Iterator[None]:
    privsep.storage_pctxt.set_client_mode(False)
    yield
    privsep.storage_pctxt.set_client_mode(True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "overlay2" / LAYER / "diff" / "usr").mkdir(parents=True)
    (tmp_path / "volumes").mkdir()
    return tmp_path


def now() -> int:
    return int(time.time())


def test_a_file_that_is_written_can_not_grow(root: Path) -> None:
    path = root / "overlay2" / LAYER / "diff/usr/zeros"
    with path.open("wb", buffering=0) as file:
        file.write(bytes(1 << 20))
        assert unpacking.count(str(root), now() - 60) == 1
        assert unpacking.break_off(str(root), now() - 60) == 1
        with pytest.raises(OSError, match="File too large") as caught:
            file.write(bytes(1 << 20))
        assert caught.value.errno == errno.EFBIG
        assert os.fstat(file.fileno()).st_blocks == 0
    assert unpacking.count(str(root), now() - 60) == 0


def test_older_layers_are_left_alone(root: Path) -> None:
    os.utime(root / "overlay2" / LAYER, (now() - 100, now() - 100))
    with (root / "overlay2" / LAYER / "diff/zeros").open("wb", buffering=0) as file:
        assert unpacking.break_off(str(root), now() - 60) == 0
        assert file.write(b"written") == 7


@pytest.mark.parametrize(
    "path", ["volumes/data", f"overlay2/{LAYER}/data", "overlay2/data", "overlay2/l/diff/data"]
)
def test_files_outside_of_layers_are_left_alone(root: Path, path: str) -> None:
    (root / "overlay2/l/diff").mkdir(parents=True)
    with (root / path).open("wb", buffering=0) as file:
        assert unpacking.break_off(str(root), now() - 60) == 0
        assert file.write(b"written") == 7


def test_readers_are_left_alone(root: Path) -> None:
    path = root / "overlay2" / LAYER / "diff/file"
    path.write_bytes(b"content")
    with path.open("rb") as file:
        assert unpacking.break_off(str(root), now() - 60) == 0
        assert file.read() == b"content"


def test_another_file_of_the_same_path_is_left_alone(root: Path) -> None:
    """A server's process may have a file of this path in its own file system."""
    path = root / "overlay2" / LAYER / "diff/file"
    with path.open("wb", buffering=0) as file:
        path.unlink()
        path.write_bytes(b"another")
        assert unpacking.break_off(str(root), now() - 60) == 0
        assert file.write(b"written") == 7
    assert path.read_bytes() == b"another"


def test_a_link_of_a_layer_is_not_followed(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    diff = root / "overlay2" / LAYER / "diff"
    (diff / "link").symlink_to(outside)
    with (outside / "file").open("wb", buffering=0) as file:
        assert unpacking.break_off(str(root), now() - 60) == 0
        assert file.write(b"written") == 7


def test_an_engine_with_another_storage_driver(tmp_path: Path) -> None:
    assert unpacking.count(str(tmp_path), now()) == 0
