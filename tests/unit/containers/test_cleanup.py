# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest

from novadocker import exception
from novadocker.virt.docker.containers.cleanup import AbandonedContainers
from tests.unit.fakes import FakeEngine


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Return an engine with two containers, one of which it cannot delete."""
    engine = FakeEngine()
    engine.add("stuck", {})
    engine.add("free", {})
    remove = engine.remove_container

    def refuse(container: str) -> None:
        if container == "id-stuck":
            raise exception.EngineError(operation="the removal", reason="device busy")
        remove(container)

    monkeypatch.setattr(engine, "remove_container", refuse)
    return engine


def names(engine: FakeEngine) -> set[str]:
    return {container.name for container in engine.containers.values()}


@pytest.mark.parametrize("known", ["id", "name"])
def test_one_that_cannot_be_removed_is_in_nobodys_way(
    refusing: FakeEngine, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandoned = AbandonedContainers(refusing)  # type: ignore[arg-type]
    for name in ("stuck", "free"):
        if known == "id":
            abandoned._made.add(f"id-{name}")
        else:
            abandoned.suspect(name)
    abandoned.sweep()
    assert names(refusing) == {"stuck"}
    monkeypatch.undo()
    abandoned.sweep()
    assert names(refusing) == set()


def test_a_refused_removal_is_tried_again(refusing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    abandoned = AbandonedContainers(refusing)
    abandoned.remove("id-stuck")
    monkeypatch.undo()
    abandoned.sweep()
    assert names(refusing) == {"free"}


def test_what_the_engine_does_not_answer_about_stays() -> None:
    engine = FakeEngine(away=True)
    engine.add("lost", {})
    abandoned = AbandonedContainers(engine)  # type: ignore[arg-type]
    abandoned.remove("id-lost")
    with pytest.raises(exception.EngineUnavailable):
        abandoned.sweep()
    engine.away = False
    abandoned.sweep()
    assert names(engine) == set()
