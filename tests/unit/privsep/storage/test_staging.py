# SPDX-License-Identifier: Apache-2.0
"""Staged directories: streams that stall, links in their place."""

import os
import time
from pathlib import Path

import pytest

from novadocker import privsep
from novadocker.privsep.storage import staging

UUID = "01234567-89ab-cdef-0123-456789abcdef"
TOKEN = "0" * 32


@pytest.fixture
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(privsep.transfer_pctxt, "client_mode", False)
    (tmp_path / "docker/overlay2").mkdir(parents=True)
    return tmp_path / "docker"


@pytest.mark.parametrize(
    ("name", "data"),
    [("_STALL_SECONDS", b'{"en'), ("_STALL_SECONDS", b""), ("_STREAM_SECONDS", b"")],
)
def test_a_stream_that_stalls(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes
) -> None:
    monkeypatch.setattr(staging, name, 0.2)
    read, write = os.pipe()
    begin = time.monotonic()
    try:
        os.write(write, data)
        with pytest.raises(TimeoutError):
            staging.receive_folders(str(data_root), UUID, TOKEN, (os.getpid(), read), 0)
    finally:
        os.close(read)
        os.close(write)
    assert time.monotonic() - begin < 20
    staging.discard_folders(str(data_root), UUID)
    assert not (data_root / staging.FOLDER).exists()


def test_a_link_is_not_adopted(data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").write_text("secret")
    staged = data_root / staging.FOLDER / f"{UUID}.{TOKEN}"
    staged.mkdir(parents=True)
    (staged / "0").symlink_to(tmp_path / "secret")
    target = data_root / "overlay2" / ("a" * 64) / "diff"
    target.mkdir(parents=True)
    with pytest.raises(NotADirectoryError):
        staging.adopt_folder(str(data_root), UUID, TOKEN, 0, str(target))
    assert list(target.iterdir()) == []
    assert (tmp_path / "secret/file").read_text() == "secret"


def test_a_directory_is_adopted_once(data_root: Path) -> None:
    staged = data_root / staging.FOLDER / f"{UUID}.{TOKEN}"
    (staged / "0").mkdir(parents=True)
    (staged / "0/new").write_text("new")
    target = data_root / "overlay2" / ("a" * 64) / "diff"
    (target / "old").mkdir(parents=True)
    assert staging.adopt_folder(str(data_root), UUID, TOKEN, 0, str(target))
    assert [path.name for path in target.iterdir()] == ["new"]
    assert not staging.adopt_folder(str(data_root), UUID, TOKEN, 0, str(target))
    assert [path.name for path in target.iterdir()] == ["new"]


def test_a_directory_of_an_old_release_is_closed_to_others(tmp_path: Path) -> None:
    drives = tmp_path / "host2"
    staging._close_to_others(str(drives))
    drives.mkdir()
    drives.chmod(0o777)
    staging._close_to_others(str(drives))
    assert drives.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("link", ["novadocker/config-drives", "novadocker"])
def test_a_link_above_a_drive_leads_to_no_directory(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    victim = tmp_path / "victim"
    drives = victim / Path("novadocker/config-drives").relative_to(link) / "tmp"
    drives.mkdir(parents=True)
    drives.chmod(0o1777)
    own = tmp_path / "own" / link
    own.parent.mkdir(parents=True)
    own.symlink_to(victim)
    root = tmp_path / "own/novadocker/config-drives"
    assert (root / "tmp").samefile(drives)
    monkeypatch.setattr(staging, "DRIVES", root)
    (data_root / staging.FOLDER / f"{UUID}.{TOKEN}").mkdir(parents=True)
    with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
        staging.adopt_folder(str(data_root), UUID, TOKEN, 0, str(root / "tmp" / UUID))
    assert drives.stat().st_mode & 0o7777 == 0o1777


def test_a_drive_elsewhere_is_not_adopted(data_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "novadocker/config-drives/tmp"
    folder.mkdir(parents=True)
    folder.chmod(0o1777)
    (data_root / staging.FOLDER / f"{UUID}.{TOKEN}").mkdir(parents=True)
    with pytest.raises(ValueError, match="is not below"):
        staging.adopt_folder(str(data_root), UUID, TOKEN, 0, str(folder / UUID))
    assert folder.stat().st_mode & 0o7777 == 0o1777
