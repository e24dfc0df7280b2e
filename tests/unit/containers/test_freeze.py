# SPDX-License-Identifier: Apache-2.0
"""A container that changes its state while its files are read."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from novadocker import exception
from novadocker.virt.docker.containers import freeze
from novadocker.virt.docker.model import ContainerDetail

BOOT = datetime(2026, 11, 30, 12, tzinfo=UTC)
FOUND = ContainerDetail("id", "nova-1", "running", {}, 7, "SIGTERM", BOOT)
STOPPED = replace(FOUND, status="exited", pid=0)
PAUSED = replace(FOUND, status="paused")


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
    engine: Any = Engine(replace(FOUND, started_at=BOOT.replace(hour=13)))
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
        replace(FOUND, started_at=BOOT.replace(hour=13)),
        # It was started and has ended again.
        replace(STOPPED, started_at=BOOT.replace(hour=13)),
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
