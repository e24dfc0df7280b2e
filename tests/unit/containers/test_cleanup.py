# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterable

import pytest
from oslo_privsep import comm, daemon

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


class Detachments:
    """Calls after the deletion of a container; the first ones raise these errors.

    :ivar containers: the names of the engine's containers at each call
    """

    def __init__(self, engine: FakeEngine, errors: Iterable[Exception] = ()) -> None:
        self._engine = engine
        self._errors = iter(errors)
        self.containers: list[set[str]] = []

    def __call__(self) -> None:
        self.containers.append(names(self._engine))
        if error := next(self._errors, None):
            raise error


def test_an_unanswered_removal_is_tried_again() -> None:
    engine = FakeEngine(away=True)
    engine.add("lost", {})
    abandoned = AbandonedContainers(engine)
    detachments = Detachments(engine)
    abandoned.remove("id-lost", detachments)
    with pytest.raises(exception.EngineUnavailable):
        abandoned.sweep()
    assert detachments.containers == []
    engine.away = False
    for _ in range(2):
        abandoned.sweep()
    assert detachments.containers == [set()]


@pytest.mark.parametrize(
    "error",
    [
        OSError("the device is busy"),
        comm.PrivsepTimeout("the device is busy"),
        daemon.FailedToDropPrivileges("the device is busy"),
    ],
)
def test_a_device_that_cannot_be_detached_delays_nothing(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    engine = FakeEngine()
    for name in ("a", "b"):
        engine.add(name, {})
    abandoned = AbandonedContainers(engine)
    busy, free = Detachments(engine, [error, error]), Detachments(engine, [error])
    abandoned.remove("id-a", busy)
    abandoned.remove("id-b", free)
    assert "build of container id-a: the device is busy" in caplog.text
    caplog.clear()
    abandoned.sweep()
    assert (len(busy.containers), len(free.containers)) == (2, 2)
    assert "build of container id-a: the device is busy" in caplog.text
    for _ in range(2):
        abandoned.sweep()
    assert (len(busy.containers), len(free.containers)) == (3, 2)
