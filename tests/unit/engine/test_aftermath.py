# SPDX-License-Identifier: Apache-2.0
"""What the engine still unpacks after a failed pull does not fill the disk."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from novadocker.linux import space
from novadocker.virt.docker.engine import aftermath

FOLDER = Path("/var/lib/docker")
BEGIN = 1_700_000_000

# The fixtures of all unit tests replace it.
watch = aftermath.watch


class Disk:
    """A disk that an engine fills, and the calls of the privileged functions.

    :ivar writes: how many looks from now find a file that the engine writes
    """

    def __init__(self) -> None:
        self.free = 1000
        self.writes = 0
        self.asked: list[int] = []
        self.broken: list[tuple[int, int]] = []
        self.error: OSError | None = None

    def count(self, data_root: str, since: int) -> int:
        assert data_root == str(FOLDER)
        self.asked.append(since)
        if self.error:
            raise self.error
        self.writes -= 1
        self.free -= 100 if self.writes >= 0 else 0
        return int(self.writes >= 0)

    def break_off(self, data_root: str, since: int) -> int:
        assert data_root == str(FOLDER)
        self.broken.append((self.free, since))
        self.writes = 0
        return 1


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    found = Disk()
    monkeypatch.setattr(aftermath, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(aftermath, "unpacking", found)
    monkeypatch.setattr(space, "free", lambda _: found.free)
    yield found
    assert aftermath._watches == {}


def wait() -> None:
    aftermath.wait()
    assert not [thread for thread in threading.enumerate() if thread.name == "pull-aftermath"]


def test_an_engine_that_unpacks_nothing_is_left_alone(disk: Disk) -> None:
    disk.free = 0
    watch(FOLDER, BEGIN, 500)
    wait()
    assert disk.asked == [BEGIN] * aftermath._CALM_LOOKS
    assert disk.broken == []


def test_a_layer_that_leaves_half_of_the_disk_is_left_alone(disk: Disk) -> None:
    disk.writes = 5
    watch(FOLDER, BEGIN, 500)
    wait()
    assert disk.free == 500
    assert disk.broken == []
    # The watch ends when the engine has unpacked nothing for some looks.
    assert len(disk.asked) == 5 + aftermath._CALM_LOOKS


def test_a_file_without_end_is_broken_off(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.writes = 1000
    watch(FOLDER, BEGIN, 500)
    wait()
    assert disk.broken == [(400, BEGIN)]
    assert caplog.text.count("1 files were broken off") == 1


def test_several_failed_pulls_have_one_watch(disk: Disk) -> None:
    disk.writes = 1000
    watch(FOLDER, BEGIN, 300)
    watch(FOLDER, BEGIN - 10, 500)
    watch(FOLDER, BEGIN + 10, 100)
    threads = [thread for thread in threading.enumerate() if thread.name == "pull-aftermath"]
    assert len(threads) == 1
    wait()
    assert disk.asked[-1] == BEGIN - 10
    assert len(disk.broken) == 1


def test_a_look_that_fails_ends_the_watch(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.error = PermissionError(13, "Permission denied")
    watch(FOLDER, BEGIN, 500)
    wait()
    assert len(disk.asked) == 1
    assert "Failed to see what the engine unpacks below /var/lib/docker" in caplog.text


def test_the_watch_has_an_end(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aftermath, "_MOST_SECONDS", 0.05)
    disk.writes = 1_000_000
    disk.free = 1 << 40
    watch(FOLDER, BEGIN, 0)
    wait()
    assert disk.broken == []
