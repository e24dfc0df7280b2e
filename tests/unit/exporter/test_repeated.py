# SPDX-License-Identifier: Apache-2.0
"""Values that are polled in the background, and the cached answers between polls."""

import queue
import time
from collections.abc import Iterator

import pytest

from novadocker.exporter.repeated import Repeated

Answers = queue.SimpleQueue[int | Exception]


@pytest.fixture
def answers() -> Answers:
    return queue.SimpleQueue()


@pytest.fixture
def question(answers: Answers) -> Iterator[Repeated[int]]:
    def ask() -> int:
        found = answers.get(timeout=60)
        if isinstance(found, Exception):
            raise found
        return found

    found = Repeated("question", ask, nothing=0, seconds=0.001)
    yield found
    found.stop()
    answers.put(0)


def seen(question: Repeated[int], value: int) -> bool:
    deadline = time.monotonic() + 60
    while question.last() != value and time.monotonic() < deadline:
        time.sleep(0.001)
    return question.last() == value


def test_the_last_answer_is_told(question: Repeated[int], answers: Answers) -> None:
    question._seconds = 100.0
    assert question.last() == 0
    question.start()
    answers.put(7)
    assert seen(question, 7)


def test_an_answer_gets_old(
    question: Repeated[int], answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    question._seconds = 100.0
    question.start()
    answers.put(7)
    assert seen(question, 7)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 301)
    assert question.last() == 0


@pytest.mark.parametrize("error", [OSError("away"), ValueError("nonsense")])
def test_who_does_not_answer_is_asked_again(
    question: Repeated[int], answers: Answers, error: Exception
) -> None:
    answers.put(error)
    answers.put(7)
    question.start()
    deadline = time.monotonic() + 60
    while not answers.empty():
        assert time.monotonic() < deadline
        time.sleep(0.001)
