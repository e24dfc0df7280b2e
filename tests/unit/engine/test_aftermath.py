# SPDX-License-Identifier: Apache-2.0
"""What the engine still unpacks after a failed pull does not fill the disk."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from novadocker import privsep
from novadocker.linux import space
from novadocker.virt.docker.engine import aftermath
from tests.waiting import until

FOLDER = Path("/var/lib/docker")
BEGIN = 1_700_000_000
UNTIL = BEGIN + 52

# The fixtures of all unit tests replace it.
watch = aftermath.watch


class Disk:
    """A disk that an engine fills, and the calls of the privileged functions.

    :ivar writes: how many looks from now find a file that the engine writes
    :ivar begin: when the engine began the layer with the file
    :ivar asked: ``since`` of each look
    :ivar broken: free space, ``since`` and ``until`` of each breaking off
    :ivar go: looks wait for it
    """

    def __init__(self) -> None:
        self.free = 1000
        self.writes = 0
        self.begin = BEGIN
        self.asked: list[int] = []
        self.broken: list[tuple[int, int, int]] = []
        self.errors: list[Exception] = []
        self.go = threading.Event()
        self.go.set()

    def begins(self, data_root: str, since: int) -> list[int]:
        assert data_root == str(FOLDER)
        assert self.go.wait(30)
        self.asked.append(since)
        if self.errors:
            raise self.errors.pop()
        self.writes -= 1
        if self.writes < 0:
            return []
        self.free -= 100
        return [self.begin]

    def break_off(self, data_root: str, since: int, until: int) -> int:
        assert data_root == str(FOLDER)
        self.broken.append((self.free, since, until))
        self.writes = 0
        return 1


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    found = Disk()
    monkeypatch.setattr(aftermath, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(aftermath, "_LAST_CALM_SECONDS", 0.2)
    monkeypatch.setattr(aftermath, "_ending", threading.Event())
    monkeypatch.setattr(aftermath, "unpacking", found)
    monkeypatch.setattr(space, "free", lambda _: found.free)
    monkeypatch.setattr(time, "time", lambda: float(BEGIN + 50))
    yield found
    wait()
    assert aftermath._pulls == {}


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pull-aftermath"]


def wait() -> None:
    aftermath.wait()
    assert threads() == []


def test_an_engine_that_unpacks_nothing_is_left_alone(disk: Disk) -> None:
    disk.free = 0
    watch(FOLDER, BEGIN, 500)
    until(lambda: len(disk.asked) > 5)
    wait()
    assert set(disk.asked) == {BEGIN}
    assert disk.broken == []


def test_a_layer_that_leaves_half_of_the_disk_is_left_alone(disk: Disk) -> None:
    disk.writes = 5
    watch(FOLDER, BEGIN, 500)
    until(lambda: len(disk.asked) > 5)
    wait()
    assert disk.free == 500
    assert disk.broken == []


def test_a_file_without_end_is_broken_off(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.writes = 1000
    watch(FOLDER, BEGIN, 500)
    until(lambda: disk.broken)
    wait()
    assert disk.broken == [(400, BEGIN, UNTIL)]
    assert caplog.text.count("1 files that the engine unpacked below /var/lib/docker") == 1


@pytest.mark.parametrize("begin", [BEGIN - 1, UNTIL + 1])
def test_layers_of_other_pulls_are_left_alone(disk: Disk, begin: int) -> None:
    """They do not prolong the watch, either."""
    disk.begin = begin
    disk.writes = 1_000_000
    disk.free = 0
    watch(FOLDER, BEGIN, 500)
    until(lambda: len(disk.asked) > 5)
    wait()
    assert disk.broken == []
    assert disk.writes > 0


def test_several_failed_pulls_have_one_thread(disk: Disk) -> None:
    disk.writes = 1000
    disk.go.clear()
    watch(FOLDER, BEGIN, 300)
    watch(FOLDER, BEGIN - 10, 100)
    watch(FOLDER, BEGIN + 10, 500)
    assert len(threads()) == 1
    disk.go.set()
    until(lambda: disk.broken)
    wait()
    assert disk.asked[-1] == BEGIN - 10
    # The pull whose bound is 500 bytes began after the layer.
    assert disk.broken == [(200, BEGIN, UNTIL)]


def test_a_pull_whose_layers_are_at_rest_is_watched_on(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aftermath, "_LAST_CALM_SECONDS", 0)
    watch(FOLDER, BEGIN, 500)
    until(lambda: len(disk.asked) > 20)
    disk.writes = 1000
    until(lambda: disk.broken)
    wait()


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), *(kind() for kind in privsep.UNANSWERED)]
)
def test_a_look_that_fails_does_not_end_the_watch(
    disk: Disk, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    disk.writes = 1000
    disk.errors = [error] * 3
    watch(FOLDER, BEGIN, 500)
    until(lambda: disk.broken)
    wait()
    assert disk.broken == [(400, BEGIN, UNTIL)]
    assert caplog.text.count("Failed to see what the engine unpacks below /var/lib/docker") == 1


def test_looks_are_rare_while_there_is_room(disk: Disk) -> None:
    disk.free = 100 << 30
    pull = aftermath._Pull(BEGIN, UNTIL, 50 << 30, 0, 0)
    assert aftermath._look(FOLDER, [pull]) == aftermath._RARE_LOOK_SECONDS
    disk.free = 60 << 30
    assert aftermath._look(FOLDER, [pull]) == aftermath._LOOK_SECONDS


def test_the_watch_has_an_end(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aftermath, "_MOST_SECONDS", 0.05)
    disk.writes = 1_000_000
    disk.free = 1 << 40
    watch(FOLDER, BEGIN, 0)
    wait()
    assert disk.broken == []
