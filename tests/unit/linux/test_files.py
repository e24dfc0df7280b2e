# SPDX-License-Identifier: Apache-2.0
"""Files that are replaced as a whole."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from novadocker.linux import files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "file"
    found.write_bytes(b"old")
    return found


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(("mode", "expected"), [(None, 0o640), (0o644, 0o644), (0o600, 0o600)])
@pytest.mark.parametrize("sync", [False, True])
def test_a_file_is_replaced(path: Path, mode: int | None, expected: int, sync: bool) -> None:
    files.replace_file(path, b"new", mode=mode, sync=sync)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == expected
    assert os.listdir(path.parent) == ["file"]


def test_a_reader_sees_the_old_file_until_the_end(path: Path) -> None:
    with files.replacement(path, mode=0o644, sync=False) as output:
        output.write(b"new")
        output.flush()
        assert path.read_bytes() == b"old"
        (beside,) = set(os.listdir(path.parent)) - {"file"}
        # nobody but the owner may read it before it has its mode
        assert stat.S_IMODE((path.parent / beside).stat().st_mode) == 0o600
    assert path.read_bytes() == b"new"


def write_half(path: Path, error: BaseException) -> None:
    with files.replacement(path, mode=None, sync=False) as output:
        output.write(b"half")
        raise error


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_file(path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        write_half(path, error)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["file"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path, path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    files.replace_file(link, b"new", mode=None, sync=False)
    assert not link.is_symlink()
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("sync", [False, True])
def test_the_disk_has_the_file_if_that_is_wanted(
    path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    synced: list[tuple[str, int, bytes]] = []

    def fsync(descriptor: int) -> None:
        place = os.readlink(f"/proc/self/fd/{descriptor}")
        size = os.fstat(descriptor).st_size if os.path.isfile(place) else 0
        name = place.rpartition("/")[2].removesuffix(place[-8:] if size else "")
        synced.append((name, size, path.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    files.replace_file(path, b"new", mode=None, sync=sync)
    wanted = [(".file.", 3, b"old"), (path.parent.name, 0, b"new")]
    assert synced == (wanted if sync else [])
