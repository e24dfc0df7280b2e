# SPDX-License-Identifier: Apache-2.0
"""Threads that repeat a function, or run one beside a block."""

import queue
import threading
import time
from collections.abc import Iterator

import pytest

from novadocker.linux.threads import Failures, Polled, Repeated, Sparse, meanwhile

Answers = queue.SimpleQueue[int | Exception]


@pytest.fixture
def answers() -> Answers:
    return queue.SimpleQueue()


@pytest.fixture
def question(answers: Answers) -> Iterator[Polled[int]]:
    def ask() -> int:
        found = answers.get(timeout=60)
        if isinstance(found, Exception):
            raise found
        return found

    found = Polled("question", ask, nothing=0, seconds=0.001)
    yield found
    found.stop()
    answers.put(0)


def seen(question: Polled[int], value: int) -> bool:
    deadline = time.monotonic() + 60
    while question.last() != value and time.monotonic() < deadline:
        time.sleep(0.001)
    return question.last() == value


def test_the_last_answer_is_returned(question: Polled[int], answers: Answers) -> None:
    question._seconds = question._repeated._seconds = 100.0
    assert question.last() == 0
    question.start()
    answers.put(7)
    assert seen(question, 7)


def test_an_answer_gets_old(
    question: Polled[int], answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    question._seconds = question._repeated._seconds = 100.0
    question.start()
    answers.put(7)
    assert seen(question, 7)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 301)
    assert question.last() == 0


@pytest.mark.parametrize("error", [OSError("away"), ValueError("nonsense")])
def test_who_does_not_answer_is_asked_again(
    question: Polled[int], answers: Answers, error: Exception
) -> None:
    answers.put(error)
    answers.put(7)
    question.start()
    deadline = time.monotonic() + 60
    while not answers.empty():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def thread_of(repeated: Repeated) -> threading.Thread:
    return next(found for found in threading.enumerate() if found.name == repeated._name)


def test_a_function_is_repeated_until_it_is_stopped() -> None:
    calls: queue.SimpleQueue[str] = queue.SimpleQueue()
    repeated = Repeated("again", lambda: calls.put(threading.current_thread().name), 0.001)
    repeated.start()
    try:
        assert [calls.get(timeout=60) for _ in range(3)] == ["again"] * 3
        thread = thread_of(repeated)
    finally:
        repeated.stop()
    assert thread.daemon
    thread.join(60)
    assert not thread.is_alive()


def test_a_stop_ends_the_wait() -> None:
    called = threading.Event()
    repeated = Repeated("waiting", called.set, 3600)
    repeated.start()
    try:
        assert called.wait(60)
        thread = thread_of(repeated)
    finally:
        repeated.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_function_and_block_run_at_once() -> None:
    begun, finish = threading.Event(), threading.Event()

    def work(value: int, *, more: int) -> None:
        begun.set()
        assert finish.wait(30)
        done.append((value, more))

    done: list[tuple[int, int]] = []
    with meanwhile(work, 1, more=2):
        assert begun.wait(30)
        assert done == []
        finish.set()
    assert done == [(1, 2)]


def test_errors_of_function_and_block() -> None:
    done = threading.Event()

    def fail() -> None:
        done.set()
        raise KeyError("the function's")

    with pytest.raises(KeyError, match="the function's"), meanwhile(fail):
        pass
    done.clear()
    with pytest.raises(ValueError, match="the block's"), meanwhile(fail):
        raise ValueError("the block's")
    assert done.is_set()


def test_events_are_logged_once_in_an_interval_with_their_number() -> None:
    now = [5.0]
    found = Sparse(60.0, clock=lambda: now[0])
    assert [found.count() for _ in range(4)] == [0, None, None, None]
    now[0] += 60
    assert [found.count() for _ in range(2)] == [3, None]
    now[0] += 60
    assert found.count() == 1


def test_a_fault_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    calls: queue.SimpleQueue[int] = queue.SimpleQueue()

    def fail() -> None:
        calls.put(1)
        raise KeyError("a fault")

    repeated = Repeated("again", fail, 0.001)
    repeated.start()
    try:
        assert [calls.get(timeout=60) for _ in range(3)] == [1] * 3
    finally:
        repeated.stop()
    assert caplog.text.count("Failed to run the thread again: 'a fault'") == 1
    assert "Traceback" in caplog.text


def test_failures_are_logged_once_for_each_object(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures("Failed to count")

    def fail(name: str) -> None:
        with failures.of(name):
            raise OSError(f"fault of {name}")

    for _ in range(3):
        fail("one")
        fail("two")
    expected = ["Failed to count one: fault of one", "Failed to count two: fault of two"]
    assert caplog.messages == expected
    assert "Traceback" not in caplog.text
    with failures.of("one"):
        pass
    failures.keep(["one"])
    fail("one")
    fail("two")
    assert caplog.messages == expected * 2
