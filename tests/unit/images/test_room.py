# SPDX-License-Identifier: Apache-2.0
"""One budget for all images that arrive at once."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from novadocker.virt.docker.images import archive, room
from novadocker.virt.docker.images.regions import ArchiveError, Region
from tests import archives
from tests.unit.images import disks


def test_all_shares_have_half_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disks.small(monkeypatch, 100)
    with room.Share(tmp_path) as one, room.Share(tmp_path) as two:
        one.reserve(30)
        two.use(15)
        with pytest.raises(room.NoRoomError):
            two.use(6)
        two.use(5)
        # Reserved space is there, whatever others use.
        one.use(30)
        with pytest.raises(room.NoRoomError):
            one.use(1)
        assert room.left(tmp_path) == 0
    assert room.left(tmp_path) == 50
    assert not any(room._shares.values())


def test_space_that_others_take_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disks.small(monkeypatch, 100)
    with room.Share(tmp_path) as share:
        share.use(40)
        disks.small(monkeypatch, 60)
        with pytest.raises(room.NoRoomError):
            share.use(1)


def test_bombs_at_once_leave_half_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If each took half of what is free at its start, three would leave an eighth or less."""
    free = 48 << 20
    seen = disks.small(monkeypatch, free)
    bomb = archives.compress(bytes(64 << 20), "gzip")

    def unpack(_number: int) -> str:
        with tempfile.TemporaryFile(dir=tmp_path) as file:
            file.write(bomb)
            file.flush()
            region = Region(file.fileno(), 0, len(bomb))
            with (
                pytest.raises(ArchiveError) as caught,
                archive.open_image(region, "amd64", tmp_path),
            ):
                pass
        return str(caught.value)

    with ThreadPoolExecutor(3) as threads:
        for text in threads.map(unpack, range(3)):
            assert text == "the archive unpacks to more than this host has room for"
    assert min(seen) >= free // 2
    assert not any(room._shares.values())
