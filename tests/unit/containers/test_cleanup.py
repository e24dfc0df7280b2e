# SPDX-License-Identifier: Apache-2.0
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
def test_a_refused_removal_does_not_delay_the_others(
    refusing: FakeEngine, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandoned = AbandonedContainers(refusing)
    refusing.away = True
    for name in ("stuck", "free"):
        if known == "id":
            abandoned.remove(f"id-{name}", lambda: None)
        else:
            abandoned.suspect(name)
    refusing.away = False
    abandoned.sweep()
    assert names(refusing) == {"stuck"}
    monkeypatch.undo()
    abandoned.sweep()
    assert names(refusing) == set()


def test_a_refused_removal_is_tried_again(
    refusing: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandoned = AbandonedContainers(refusing)
    abandoned.remove("id-stuck", lambda: None)
    monkeypatch.undo()
    abandoned.sweep()
    assert names(refusing) == {"free"}


def test_an_unanswered_removal_is_tried_again() -> None:
    engine = FakeEngine(away=True)
    engine.add("lost", {})
    abandoned = AbandonedContainers(engine)
    calls = iter([OSError("the device is busy"), None])
    after = []

    def afterwards() -> None:
        after.append(names(engine))
        if error := next(calls):
            raise error

    abandoned.remove("id-lost", afterwards)
    with pytest.raises(exception.EngineUnavailable):
        abandoned.sweep()
    assert after == []
    engine.away = False
    with pytest.raises(OSError, match="the device is busy"):
        abandoned.sweep()
    for _ in range(2):
        abandoned.sweep()
    assert after == [set(), set()]
