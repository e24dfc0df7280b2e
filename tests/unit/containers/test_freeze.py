# SPDX-License-Identifier: Apache-2.0
"""A container that changes its state while its files are read."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from novadocker import exception
from novadocker.virt.docker.containers import freeze
from novadocker.virt.docker.engine import responses
from novadocker.virt.docker.model import ContainerDetail


def inspected(status: str, pid: int, boot_hour: int = 12) -> ContainerDetail:
    """Return a container as the engine's client does; a run lasts half an hour."""
    ended = "0001-01-01T00:00:00Z" if pid else f"2026-11-30T{boot_hour}:30:00Z"
    state = {
        "Status": status,
        "Pid": pid,
        "ExitCode": 0,
        "StartedAt": f"2026-11-30T{boot_hour}:00:00Z",
        "FinishedAt": ended,
    }
    return responses.container_detail(
        {"Id": "id", "Name": "/nova-1", "Image": "image", "State": state, "Config": {}}
    )


FOUND = inspected("running", 7)
STOPPED = inspected("exited", 0)
PAUSED = inspected("paused", 7)


class Engine:
    """An engine with one container; ``paused`` counts the freezes."""

    def __init__(self, container: ContainerDetail) -> None:
        self.container = container
        self.paused = 0

    def inspect_container(self, _id: str) -> ContainerDetail:
        return self.container

    def pause_container(self, _id: str) -> None:
        self.paused += 1
        self.container = replace(self.container, status="paused")

    def unpause_container(self, _id: str) -> None:
        self.container = replace(self.container, status="running")


def test_a_container_that_was_started_since_is_frozen(tmp_path: Path) -> None:
    engine: Any = Engine(inspected("running", 8, boot_hour=13))
    with freeze.frozen(engine, STOPPED, tmp_path):
        assert engine.container.status == "paused"
        assert [mark.name for mark in tmp_path.iterdir()] == [f"{freeze.PREFIX}id"]
    assert (engine.paused, engine.container.status) == (1, "running")


def test_a_container_that_was_stopped_since_is_read_as_it_is(tmp_path: Path) -> None:
    engine: Any = Engine(STOPPED)
    with freeze.frozen(engine, FOUND, tmp_path):
        pass
    assert engine.paused == 0


@pytest.mark.parametrize("before", [STOPPED, PAUSED])
@pytest.mark.parametrize(
    "after",
    [
        FOUND,
        inspected("running", 8, boot_hour=13),
        # It was started and has ended again.
        inspected("exited", 0, boot_hour=13),
    ],
)
def test_files_that_were_read_while_processes_ran_are_refused(
    tmp_path: Path, before: ContainerDetail, after: ContainerDetail
) -> None:
    engine: Any = Engine(before)
    with (
        pytest.raises(exception.RanMeanwhile, match="Container nova-1 ran"),
        freeze.frozen(engine, before, tmp_path),
    ):
        engine.container = after
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("found", [STOPPED, PAUSED])
def test_a_container_that_rests_is_left_alone(tmp_path: Path, found: ContainerDetail) -> None:
    engine: Any = Engine(found)
    with freeze.frozen(engine, found, tmp_path):
        pass
    assert (engine.paused, engine.container) == (0, found)


@pytest.mark.parametrize(
    "failure", [exception.EngineError(operation="a pause", reason="busy"), ValueError("no number")]
)
def test_a_container_that_is_not_thawed_keeps_none_frozen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{freeze.GIVEN_UP}{name}").touch()
    tried: list[str] = []

    def inspect(name: str) -> ContainerDetail:
        tried.append(name)
        if name == "a":
            raise failure
        return FOUND

    engine: Any = SimpleNamespace(inspect_container=inspect, within=nullcontext)
    failures = freeze.thaw_failures()
    for _ in range(3):
        freeze.thaw_given_up(engine, tmp_path, failures)
    assert tried == ["a", "b", "a", "a"]
    assert [mark.name for mark in tmp_path.iterdir()] == [f"{freeze.GIVEN_UP}a"]
    assert caplog.messages == [
        f"Failed to thaw container a: {failure}",
        "Thawed container b, which was left frozen",
    ]
