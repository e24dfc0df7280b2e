# SPDX-License-Identifier: Apache-2.0
"""One budget for all images that arrive at once."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from novadocker.virt.docker.images import archive, room
from novadocker.virt.docker.images.platforms import Platform
from novadocker.virt.docker.images.regions import ArchiveError, Region
from tests import CHECKOUT, archives
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
    assert room.shares(tmp_path) == []


PROGRAM = """
import sys
from pathlib import Path
from novadocker.virt.docker.images import room
with room.Share(Path(sys.argv[1])) as share:
    share.reserve(30)
    share.use(10)
    print(room.shares(Path(sys.argv[1])), flush=True)
    sys.stdin.read()
"""


def test_all_processes_share_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """novadocker-receive is a process of its own; what it reserved ends when it is killed."""
    disks.small(monkeypatch, 100)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "[(30, 10)]\n"
        with room.Share(tmp_path) as share:
            share.reserve(20)
            with pytest.raises(room.NoRoomError):
                share.reserve(1)
            other.kill()
            other.wait()
            share.reserve(30)
    assert room.shares(tmp_path) == []


def test_a_slot_of_a_process_that_died_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks.small(monkeypatch, 1000)
    path = tmp_path / room.LEDGER
    path.parent.mkdir()
    path.write_bytes(b"\xff" * room._SLOT.size * room._MOST_SHARES)
    assert room.left(tmp_path) == 500
    with contextlib.ExitStack() as opened:
        for _ in range(room._MOST_SHARES):
            opened.enter_context(room.Share(tmp_path)).use(1)
        with pytest.raises(room.NoRoomError):
            room.left(tmp_path)
    assert room.shares(tmp_path) == []


def test_a_budget_is_exact_with_many_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    taken = []

    def take(_number: int) -> None:
        with room.Share(tmp_path) as share:
            for _ in range(50):
                with contextlib.suppress(room.NoRoomError):
                    share.reserve(3)
                    taken.append(3)
            barrier.wait(60)

    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(take, range(8)))
    assert sum(taken) == 498


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
                archive.open_image(region, Platform("amd64"), tmp_path),
            ):
                pass
        return str(caught.value)

    with ThreadPoolExecutor(3) as threads:
        for text in threads.map(unpack, range(3)):
            assert text == "the archive unpacks to more than this host has room for"
    assert min(seen) >= free // 2
    assert room.shares(tmp_path) == []


def layered(compressed: bytes, *layers: bytes) -> bytes:
    """Return an archive of an image with layers, of which the first is compressed."""
    stored = [compressed, *layers[1:]]
    return archives.tar(archives.docker_files(archives.config(list(layers)), stored))


ZEROS = archives.tar({"zeros": bytes(3 << 20)})
SMALL = archives.tar({"small": bytes(1 << 20)})
IMAGE = archives.tar(archives.docker_files(archives.config([ZEROS]), [ZEROS]))


@pytest.mark.parametrize("program", ["gzip", "zstd"])
@pytest.mark.parametrize(
    ("compress", "loader", "name"),
    [
        (lambda pack: pack(IMAGE), archive.open_image, "the archive"),
        (lambda pack: layered(pack(ZEROS), ZEROS), archive.open_image, "layer 1"),
        (
            lambda pack: layered(pack(SMALL), SMALL, ZEROS),
            archive.open_image,
            "the image up to layer 2",
        ),
        (lambda pack: pack(ZEROS), archive.open_root, "the archive"),
        (lambda _pack: ZEROS, archive.open_root, "the archive"),
    ],
    ids=["archive", "layer", "plain layer", "root", "plain root"],
)
def test_an_image_unpacks_to_no_more_than_the_flavors_disk(
    tmp_path: Path, program: str, compress: Any, loader: Any, name: str
) -> None:
    content = compress(lambda plain: archives.compress(plain, program))
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        file.write(content)
        file.flush()
        region = Region(file.fileno(), 0, len(content))
        for most in (0, 5 << 20):
            with loader(region, Platform("amd64"), tmp_path, most) as image:
                assert image.layers
        with (
            pytest.raises(ArchiveError) as caught,
            loader(region, Platform("amd64"), tmp_path, 2 << 20),
        ):
            pass
    found = re.fullmatch(
        rf"{name} unpacks to (\d+) bytes or more, but the flavor's root disk has only {2 << 20}",
        str(caught.value),
    )
    assert found
    # A bomb is read no further.
    assert 2 << 20 < int(found[1]) < 4.1 * (1 << 20)
