# SPDX-License-Identifier: Apache-2.0
"""A registry fills no disk: what an engine tells of a pull, and of the image."""

import contextlib
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from novadocker import exception
from novadocker.virt.docker.engine import pull_bounds
from novadocker.virt.docker.engine.pull_bounds import PullBounds

MOST = 1000


def progress(layer: str, status: str, current: int, total: int = 0) -> dict[str, Any]:
    return {"id": layer, "status": status, "progressDetail": {"current": current, "total": total}}


@pytest.fixture
def bounds(tmp_path: Path) -> PullBounds:
    return PullBounds("r.example/web", str(tmp_path), MOST)


def test_layers_count_together_and_once(bounds: PullBounds) -> None:
    for message in (
        {"status": "Pulling from web", "id": "1"},
        {"status": "Pulling fs layer", "progressDetail": {}, "id": "a"},
        progress("a", "Downloading", 100, 600),
        progress("a", "Downloading", 600, 600),
        progress("b", "Downloading", 400, 400),
        progress("a", "Extracting", 600, 600),
        {"status": "Already exists", "progressDetail": {}, "id": "c"},
        {"status": "Pull complete", "progressDetail": {}, "id": "a"},
        {"status": "Digest: sha256:1"},
    ):
        bounds.note(message)
    with pytest.raises(exception.ImageTooLarge, match=r"1001 bytes or more.*only 1000"):
        bounds.note(progress("d", "Downloading", 0, 1))


def test_a_registry_that_tells_no_size(bounds: PullBounds) -> None:
    bounds.note(progress("a", "Downloading", MOST, -1))
    with pytest.raises(exception.ImageTooLarge):
        bounds.note(progress("a", "Downloading", MOST + 1, -1))


def test_a_root_disk_of_0_gb_bounds_nothing(tmp_path: Path) -> None:
    unbound = PullBounds("r.example/web", str(tmp_path), 0)
    unbound.note(progress("a", "Downloading", 1 << 60))
    unbound.check(1 << 60)


def test_half_of_the_free_space_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine tells nothing meanwhile: it writes one file, of a layer of a few bytes."""
    free = 1000
    monkeypatch.setattr(pull_bounds, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=1))
    unbound = PullBounds("r.example/web", str(tmp_path), 0)
    cut = threading.Event()
    # What the caller meets is only the effect.
    effect = exception.EngineUnavailable(url="-", reason="the connection ended")

    too_early = True

    def fill() -> None:
        nonlocal free, too_early
        free = 500
        too_early = cut.wait(0.1)
        free = 499
        raise effect if cut.wait(20) else AssertionError

    with (
        pytest.raises(exception.PullCutOff, match="not enough free space"),
        unbound.watched(cut.set),
    ):
        fill()
    assert not too_early


def test_pulls_that_start_one_after_the_other_share_one_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 1000
    monkeypatch.setattr(pull_bounds, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=1))
    cuts = [threading.Event() for _ in range(4)]
    pulls = [PullBounds(f"r.example/{number}", str(tmp_path), 0) for number in range(4)]
    with contextlib.ExitStack() as running:
        for pull, cut, left in zip(pulls[:3], cuts, (700, 550, 500), strict=False):
            running.enter_context(pytest.raises(exception.PullCutOff))
            running.enter_context(pull.watched(cut.set))
            free = left
        # The end of a watch would replace a failed assertion here.
        too_early = cuts[2].wait(0.1)
        free = 499
        ended = [cut.wait(20) for cut in cuts[:3]]
    assert not too_early
    assert ended == [True] * 3
    # No pull runs, so the next one counts from now on.
    with pulls[3].watched(cuts[3].set):
        free = 250
        assert not cuts[3].wait(0.1)


def test_a_pull_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_bounds, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(pull_bounds, "_MOST_SECONDS", 0)
    cut = threading.Event()
    with (
        pytest.raises(exception.PullCutOff, match="did not send it within"),
        PullBounds("r.example/web", str(tmp_path), 0).watched(cut.set),
    ):
        assert cut.wait(20)


def test_free_space_that_can_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_bounds, "_LOOK_SECONDS", 0.01)
    bounds = PullBounds("r.example/web", str(tmp_path), 0)
    cut = threading.Event()

    def remove() -> None:
        tmp_path.rmdir()
        assert cut.wait(20)

    with pytest.raises(exception.PullCutOff, match="cannot be read"), bounds.watched(cut.set):
        remove()


def test_what_the_engine_unpacks_after_a_failed_pull_is_watched(
    tmp_path: Path,
    bounds: PullBounds,
    monkeypatch: pytest.MonkeyPatch,
    failed_pulls: list[tuple[object, ...]],
) -> None:
    """The registry's error for one layer does not end the unpacking of another."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1000, f_frsize=1))
    begin = int(time.time())
    with bounds.watched(lambda: None):
        pass
    assert failed_pulls == []
    with pytest.raises(ValueError, match="own"), bounds.watched(lambda: None):
        raise ValueError("own")
    assert failed_pulls in ([(tmp_path, begin, 500)], [(tmp_path, begin + 1, 500)])


def test_an_error_of_the_pull_ends_the_watch(bounds: PullBounds) -> None:
    def cut() -> None:
        raise AssertionError

    with pytest.raises(ValueError, match="own"), bounds.watched(cut):
        raise ValueError("own")
    assert not [thread for thread in threading.enumerate() if thread.name == "pull-bounds"]
