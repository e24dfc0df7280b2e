# SPDX-License-Identifier: Apache-2.0
import threading

import pytest

from novadocker import exception
from novadocker.virt.docker.containers import pending as pending_module
from novadocker.virt.docker.containers.pending import Pending


class Requests:
    """Requests that fail with ``failures``, by key; ``sent`` lists those that succeeded."""

    def __init__(self) -> None:
        self.failures: dict[str, Exception] = {}
        self.sent: list[str] = []

    def __call__(self, key: str) -> None:
        if key in self.failures:
            raise self.failures[key]
        self.sent.append(key)


REFUSED = exception.EngineError(operation="the request", reason="busy")
AWAY = exception.EngineUnavailable(url="fake", reason="away")
HANGS = exception.ContainerHangs(operation="to remove the container", seconds=10)
GONE = exception.ContainerNotFound(operation="the request", reason="deleted")


@pytest.mark.parametrize("failure", [REFUSED, AWAY])
def test_a_failed_request_is_sent_again_until_it_succeeds(failure: Exception) -> None:
    requests = Requests()
    pending = Pending(requests, "Failed to do %s: %s")
    requests.failures = {"a": failure}
    with pytest.raises(type(failure)):
        pending.send("a")
    pending.send("b")
    requests.failures = {}
    pending.sweep()
    pending.sweep()
    assert requests.sent == ["b", "a"]


def test_a_refused_request_does_not_delay_the_others(caplog: pytest.LogCaptureFixture) -> None:
    requests = Requests()
    requests.failures = {"a": REFUSED}
    pending = Pending(requests, "Failed to do %s: %s")
    for key in ("a", "b"):
        pending.add(key)
    pending.sweep()
    assert requests.sent == ["b"]
    assert "Failed to do a: " in caplog.text


def test_an_engine_that_does_not_answer_gets_one_request() -> None:
    requests = Requests()
    requests.failures = {"a": AWAY}
    pending = Pending(requests, "Failed to do %s: %s")
    for key in ("a", "b"):
        pending.add(key)
    with pytest.raises(exception.EngineUnavailable):
        pending.sweep()
    assert requests.sent == []


def test_a_request_for_a_deleted_container_is_dropped() -> None:
    requests = Requests()
    requests.failures = {"a": GONE}
    pending = Pending(requests, "Failed to do %s: %s")
    pending.add("a")
    pending.sweep()
    requests.failures = {}
    pending.sweep()
    assert requests.sent == []


def test_a_container_that_hangs_is_left_alone_for_a_while() -> None:
    requests = Requests()
    requests.failures = {"a": HANGS}
    now = [0.0]
    pending = Pending(requests, "Failed to do %s: %s", clock=lambda: now[0])
    for key in ("a", "b"):
        pending.add(key)
    pending.sweep()
    assert requests.sent == ["b"]
    requests.failures = {}
    pending.sweep()
    assert requests.sent == ["b"]
    now[0] = 301.0
    pending.sweep()
    assert requests.sent == ["b", "a"]


def test_a_request_that_lasts_delays_no_other() -> None:
    begun, go_on = threading.Event(), threading.Event()
    sent = []

    def request(key: str) -> None:
        if key == "a":
            begun.set()
            assert go_on.wait(60)
        sent.append(key)

    pending = Pending(request, "Failed to do %s: %s")
    thread = threading.Thread(target=pending.send, args=("a",))
    thread.start()
    assert begun.wait(60)
    pending.add("b")
    pending.sweep()
    pending.send("c")
    assert sent == ["b", "c"]
    go_on.set()
    thread.join()
    pending.sweep()
    assert sent == ["b", "c", "a"]


def test_a_request_waits_for_the_same_request_of_a_sweep() -> None:
    """The engine refuses the removal of a container that it removes already."""
    begun, go_on = threading.Event(), threading.Event()
    running: list[str] = []
    most: list[int] = []

    def request(key: str) -> None:
        running.append(key)
        most.append(len(running))
        begun.set()
        assert go_on.wait(60)
        running.remove(key)

    pending = Pending(request, "Failed to do %s: %s")
    pending.add("a")
    sweep = threading.Thread(target=pending.sweep)
    sweep.start()
    assert begun.wait(60)
    send = threading.Thread(target=pending.send, args=("a",))
    send.start()
    send.join(0.2)
    assert send.is_alive()
    go_on.set()
    for thread in (sweep, send):
        thread.join(60)
    assert most == [1, 1]


def test_a_request_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_module, "_OTHER_SECONDS", 0.1)
    begun, go_on = threading.Event(), threading.Event()
    sent: list[str] = []

    def request(key: str) -> None:
        if not begun.is_set():
            begun.set()
            assert go_on.wait(60)
        sent.append(key)

    pending = Pending(request, "Failed to do %s: %s")
    pending.add("a")
    sweep = threading.Thread(target=pending.sweep)
    sweep.start()
    assert begun.wait(60)
    pending.send("a")
    assert sent == ["a"]
    go_on.set()
    sweep.join(60)
    assert sent == ["a", "a"]
