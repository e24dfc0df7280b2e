# SPDX-License-Identifier: Apache-2.0
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeAlias

import pytest
from nova.virt import event as virtevent

from novadocker import exception, naming
from novadocker.virt.docker import events
from novadocker.virt.docker.containers.servers import ServerList
from novadocker.virt.docker.model import ContainerDetail, ContainerEvent
from tests.unit.fakes import FakeEngine
from tests.waiting import until

UUID = "5f9f2a0e-1a1d-4f0c-8a58-2f6f1f9b7c11"
OTHER = "6a0f2a0e-1a1d-4f0c-8a58-2f6f1f9b7c12"
THIRD = "7b0f2a0e-1a1d-4f0c-8a58-2f6f1f9b7c13"
STARTED = virtevent.EVENT_LIFECYCLE_STARTED
STOPPED = virtevent.EVENT_LIFECYCLE_STOPPED

Next = Callable[[], tuple[str, int]]
Seen: TypeAlias = "queue.SimpleQueue[virtevent.LifecycleEvent]"


def labels(uuid: str) -> dict[str, str]:
    return {naming.LABEL_SCHEMA: naming.SCHEMA, naming.LABEL_UUID: uuid}


def event(
    action: str,
    uuid: str = UUID,
    name: str | None = None,
    time_ns: int | None = None,
    **attributes: str,
) -> ContainerEvent:
    return ContainerEvent(
        name or naming.container_name(uuid),
        action,
        time.time_ns() if time_ns is None else time_ns,
        {**labels(uuid), **attributes},
    )


def add_ended(engine: FakeEngine, code: int) -> None:
    """Add a server that ended with an exit status."""
    name = naming.container_name(UUID)
    engine.add(name, labels(UUID), status="exited")
    engine.containers[f"id-{name}"] = replace(engine.containers[f"id-{name}"], exit_code=code)


@pytest.mark.parametrize(
    ("added", "now", "due", "left"),
    [
        ([], 9.0, [], None),
        ([(UUID, STOPPED, 1.0)], 1.9, [], 0.1),
        ([(UUID, STOPPED, 1.0)], 2.0, [(UUID, STOPPED)], None),
        # A restart is reported as a start, at the time at which the stop would have been reported.
        ([(UUID, STOPPED, 1.0), (UUID, STARTED, 1.5)], 2.0, [(UUID, STARTED)], None),
        ([(UUID, STOPPED, 1.0), (OTHER, STOPPED, 1.5)], 2.0, [(UUID, STOPPED)], 0.5),
    ],
)
def test_what_is_held(
    added: list[tuple[str, int, float]],
    now: float,
    due: list[tuple[str, int]],
    left: float | None,
) -> None:
    held = events.Held(1.0)
    for uuid, transition, when in added:
        held.add(uuid, transition, when)
    assert held.take_due(now) == due
    if left is None or due:
        assert held.seconds_left(now) == left
    else:
        assert held.seconds_left(now) == pytest.approx(left)


@pytest.fixture
def killed() -> list[str]:
    """Return the list of servers of which a process was killed."""
    return []


class Answered(list[str | None]):
    """The reports whether the engine answers, and the exception that is handled at each report."""

    def __init__(self) -> None:
        super().__init__()
        self.handled: list[BaseException | None] = []

    def append(self, problem: str | None) -> None:
        self.handled.append(sys.exception())
        super().append(problem)


@pytest.fixture
def answered() -> Answered:
    """Return the list of reports whether the engine answers."""
    return Answered()


@pytest.fixture
def rebooted() -> list[str]:
    """Return the list of servers that rebooted from inside."""
    return []


@pytest.fixture
def seen() -> Seen:
    """Return the queue of the events that Nova gets."""
    return queue.SimpleQueue()


@pytest.fixture
def gone() -> set[str]:
    """Return the set of servers that Nova has deleted or has on another host."""
    return set()


@pytest.fixture
def listing(engine: FakeEngine) -> ServerList:
    return ServerList(engine)


@pytest.fixture
def told(
    engine: FakeEngine,
    listing: ServerList,
    monkeypatch: pytest.MonkeyPatch,
    killed: list[str],
    answered: list[str | None],
    rebooted: list[str],
    seen: Seen,
    gone: set[str],
) -> Iterator[Next]:
    """Run the threads on the fake engine; yield a function that returns Nova's next event."""
    monkeypatch.setattr(events, "_HELD_SECONDS", 0.0)
    monkeypatch.setattr(events, "_RECONNECT_SECONDS", 0.0)
    watcher = events.Events(
        engine,
        listing,
        seen.put,  # type: ignore[arg-type]
        killed.append,
        answered.append,
        rebooted.append,
        gone.intersection,
    )
    watcher.start()

    def take() -> tuple[str, int]:
        found = seen.get(timeout=10)
        return found.get_instance_uuid(), found.get_transition()

    yield take
    watcher.stop()


@pytest.mark.parametrize(("action", "transition"), events.TRANSITIONS.items())
def test_nova_is_told(engine: FakeEngine, told: Next, action: str, transition: int) -> None:
    engine.events.put(event(action))
    assert told() == (UUID, transition)


def test_foreign_containers_and_forged_labels_are_not_told(engine: FakeEngine, told: Next) -> None:
    engine.events.put(event("die", name="nova-of-someone"))
    engine.events.put(event("oom"))
    engine.events.put(event("die", OTHER))
    assert told() == (OTHER, STOPPED)


def test_deletions_from_before_the_start(
    engine: FakeEngine, told: Next, listing: ServerList, rebooted: list[str]
) -> None:
    """Nova reads the other states when it starts; a deletion leaves no container to read."""
    assert engine.watched_since in ([], [0])
    engine.events.put(event("destroy", time_ns=1))
    engine.events.put(event("destroy", name="nova-of-someone", uuid=THIRD, time_ns=2))
    engine.events.put(event("die", OTHER, time_ns=3))
    engine.events.put(event("destroy", OTHER, time_ns=4))
    # It was rebuilt, and then an operator renamed its container.
    engine.events.put(event("start", OTHER, time_ns=5))
    engine.events.put(event("start", THIRD))
    assert [told(), told(), told()] == [(UUID, STOPPED), (OTHER, STOPPED), (THIRD, STARTED)]
    deleted = [uuid for uuid in (UUID, OTHER, THIRD) if listing.was_deleted(uuid)]
    assert deleted == [UUID]


def test_deletions_that_nova_knows_are_not_told(
    engine: FakeEngine, told: Next, gone: set[str]
) -> None:
    """The engine has stored them, too."""
    gone |= {UUID, THIRD}
    engine.events.put(event("destroy", time_ns=1))
    engine.events.put(event("destroy", OTHER, time_ns=2))
    assert told() == (OTHER, STOPPED)
    # Nova's own checks follow for what happens after the start.
    engine.events.put(event("destroy", THIRD))
    assert told() == (THIRD, STOPPED)


def test_a_stand_in_of_a_rescue_is_no_server(engine: FakeEngine, told: Next) -> None:
    engine.events.put(event("destroy", **{naming.LABEL_RESCUE: "1"}))
    engine.events.put(event("destroy", OTHER))
    assert told() == (OTHER, STOPPED)


def test_a_lost_stream_is_followed_by_a_full_check(engine: FakeEngine, told: Next) -> None:
    engine.add(naming.container_name(UUID), labels(UUID), status="exited")
    engine.add(naming.container_name(OTHER), labels(OTHER), status="running")
    engine.events.put(None)
    assert {told(), told()} == {(UUID, STOPPED), (OTHER, STARTED)}
    engine.add(naming.container_name(OTHER), labels(OTHER), status="exited")
    engine.events.put(event("die", OTHER))
    assert told() == (OTHER, STOPPED)


def test_an_engine_that_is_away_is_reported(
    engine: FakeEngine, told: Next, answered: Answered
) -> None:
    handled = answered.handled
    engine.add(naming.container_name(UUID), labels(UUID), status="exited")
    engine.away = True
    engine.events.put(None)
    until(lambda: answered)
    assert answered[0] is not None
    engine.away = False
    until(lambda: answered[-1] is None)
    # oslo.log would add it to the warning that the engine answers again.
    assert handled[-1] is None
    assert told() == (UUID, STOPPED)
    assert answered[-1] is None


@pytest.mark.parametrize(("code", "reboots"), [(129, True), (130, False), (0, False), (137, False)])
@pytest.mark.parametrize("label", ["129", "0", "1\n2026-01-01 CRITICAL forged"])
def test_a_reboot_from_inside_is_no_stop(
    engine: FakeEngine,
    told: Next,
    rebooted: list[str],
    caplog: pytest.LogCaptureFixture,
    code: int,
    reboots: bool,
    label: str,
) -> None:
    """An image's label replaces the exit status in the event."""
    caplog.set_level("INFO", events.__name__)
    add_ended(engine, code)
    engine.events.put(event("die", exitCode=label))
    engine.events.put(event("start", OTHER))
    if not reboots:
        assert told() == (UUID, STOPPED)
    assert told() == (OTHER, STARTED)
    assert rebooted == ([UUID] if reboots else [])
    assert caplog.messages == [f"The first process ended with exit status {code}"]


def test_the_end_of_a_server_while_the_engine_goes_away(
    engine: FakeEngine, told: Next, rebooted: list[str]
) -> None:
    add_ended(engine, 129)
    engine.away = True
    engine.events.put(event("die", exitCode="129"))
    until(lambda: engine.events.empty())
    engine.away = False
    until(lambda: rebooted)
    engine.events.put(event("start", OTHER))
    assert told() == (OTHER, STARTED)


def test_an_inspection_that_hangs_is_a_stop(
    engine: FakeEngine, told: Next, rebooted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(_container: str) -> None:
        raise exception.ContainerHangs(operation="to inspect a container", seconds=10)

    monkeypatch.setattr(engine, "inspect_container", hang)
    engine.events.put(event("die"))
    assert told() == (UUID, STOPPED)
    engine.events.put(event("start", OTHER))
    assert told() == (OTHER, STARTED)
    assert len(engine.watched_since) == 1
    assert rebooted == []


@pytest.mark.parametrize("status", ["running", "paused"])
def test_a_stop_is_not_reported_while_the_server_is_started(
    engine: FakeEngine, told: Next, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """The engine lists a container as ended while it starts it; an inspection waits."""
    name = naming.container_name(UUID)
    engine.add(name, labels(UUID), status="exited")
    inspect = engine.inspect_container

    def wait(container: str) -> ContainerDetail:
        return replace(inspect(container), status=status, exit_code=None)

    monkeypatch.setattr(engine, "inspect_container", wait)
    engine.events.put(event("die"))
    engine.events.put(event("start", OTHER))
    assert told() == (OTHER, STARTED)


def test_a_stop_is_not_reported_of_a_server_that_runs(engine: FakeEngine, told: Next) -> None:
    engine.add(naming.container_name(UUID), labels(UUID), status="running")
    engine.events.put(event("die"))
    engine.events.put(event("start", OTHER))
    assert told() == (OTHER, STARTED)


def test_a_stop_is_not_reported_of_a_server_that_the_engine_is_busy_with(
    engine: FakeEngine,
    told: Next,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hang(_container: str) -> ContainerDetail:
        raise exception.ContainerHangs(operation="to inspect a container", seconds=10)

    add_ended(engine, 0)
    monkeypatch.setattr(engine, "inspect_container", hang)
    engine.events.put(event("die"))
    engine.events.put(event("start", OTHER))
    assert told() == (OTHER, STARTED)
    assert any("Failed to check that the server stopped" in line for line in caplog.messages)


def test_a_reboot_from_inside_while_the_stream_was_lost(
    engine: FakeEngine, told: Next, rebooted: list[str]
) -> None:
    add_ended(engine, 129)
    engine.add(naming.container_name(OTHER), labels(OTHER), status="running")
    engine.events.put(None)
    assert told() == (OTHER, STARTED)
    assert rebooted == [UUID]


def test_an_event_waits_for_the_engine(engine: FakeEngine, told: Next, seen: Seen) -> None:
    engine.away = True
    engine.events.put(event("start"))
    with pytest.raises(queue.Empty):
        seen.get(timeout=0.3)
    engine.away = False
    assert told() == (UUID, STARTED)


def test_no_event_is_handled_after_the_stop(engine: FakeEngine) -> None:
    """The stream of events may last longer than the driver, which must not start a server then."""
    seen: list[object] = []
    watcher = events.Events(
        engine,
        ServerList(engine),
        seen.append,
        seen.append,
        seen.append,
        seen.append,
        lambda _: set(),
    )
    watcher.start()
    (reader,) = (
        thread
        for thread in threading.enumerate()
        if thread._target == watcher._read  # type: ignore[attr-defined]
    )
    watcher.stop()
    engine.events.put(event("die", exitCode="129"))
    engine.events.put(event("oom"))
    reader.join(60)
    assert seen == []


def test_an_event_that_makes_no_sense_is_passed_over(engine: FakeEngine, told: Next) -> None:
    engine.add(naming.container_name(UUID), labels(UUID), status="exited")
    engine.events.put(event("start", OTHER))
    engine.events.put(exception.EngineError(operation="the events", reason="no sense"))
    # These events come from the full check.
    assert {told(), told()} == {(OTHER, STARTED), (UUID, STOPPED)}
    engine.events.put(event("die", OTHER))
    assert told() == (OTHER, STOPPED)
    first, again, *_ = engine.watched_since
    assert again > first


def test_an_out_of_memory_kill_is_logged_and_recorded(
    engine: FakeEngine, told: Next, killed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", events.__name__)
    engine.events.put(event("oom", name="nova-of-someone"))
    engine.events.put(event("oom"))
    engine.events.put(event("die"))
    told()
    assert [
        (vars(record)["instance_uuid"], record.getMessage())
        for record in caplog.records
        if record.name == events.__name__
    ] == [
        (UUID, "The kernel killed a process: out of memory"),
        (UUID, "The first process ended with exit status unknown"),
    ]
    assert killed == [UUID]
