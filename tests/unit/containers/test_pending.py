# SPDX-License-Identifier: Apache-2.0
import threading
from collections.abc import Callable, Iterator

import pytest

from novadocker import exception
from novadocker.virt.docker.containers import pending as pending_module
from novadocker.virt.docker.containers.pending import Pending

Begin = Callable[[Callable[[], object]], threading.Thread]


class Requests:
    """Requests that a test lets fail or hold.

    :ivar failures: by key
    :ivar held: the keys whose next request waits for ``go_on``, after it has set ``begun``
    :ivar sent: the requests that succeeded
    :ivar most_at_once: how many requests ran at the same time
    """

    def __init__(self) -> None:
        self.failures: dict[str, Exception] = {}
        self.held: set[str] = set()
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.sent: list[str] = []
        self.most_at_once = 0
        self._running: list[str] = []

    def __call__(self, key: str) -> None:
        if key in self.failures:
            raise self.failures[key]
        self._running.append(key)
        self.most_at_once = max(self.most_at_once, len(self._running))
        if key in self.held:
            self.held.remove(key)
            self.begun.set()
            assert self.go_on.wait(60)
        self._running.remove(key)
        self.sent.append(key)


@pytest.fixture
def requests() -> Requests:
    return Requests()


@pytest.fixture
def now() -> list[float]:
    """Return the clock: a list of the present second."""
    return [0.0]


@pytest.fixture
def pending(requests: Requests, now: list[float]) -> Pending:
    return Pending(requests, "Failed to do", clock=lambda: now[0])


@pytest.fixture
def begun() -> Iterator[Begin]:
    """Yield a function that runs a function in a thread, which the test lets end."""
    threads: list[threading.Thread] = []

    def begin(function: Callable[[], object]) -> threading.Thread:
        threads.append(threading.Thread(target=function))
        threads[-1].start()
        return threads[-1]

    yield begin
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


REFUSED = exception.EngineError(operation="the request", reason="busy")
AWAY = exception.EngineUnavailable(url="fake", reason="away")
HANGS = exception.ContainerHangs(operation="to remove the container", seconds=10)
GONE = exception.ContainerNotFound(operation="the request", reason="deleted")


@pytest.mark.parametrize("failure", [REFUSED, AWAY])
def test_a_failed_request_is_sent_again_until_it_succeeds(
    requests: Requests, pending: Pending, failure: Exception
) -> None:
    requests.failures = {"a": failure}
    with pytest.raises(type(failure)):
        pending.send("a")
    pending.send("b")
    requests.failures = {}
    pending.sweep()
    pending.sweep()
    assert requests.sent == ["b", "a"]


@pytest.mark.parametrize("failure", [REFUSED, ValueError("no number")])
def test_a_refused_request_does_not_delay_the_others(
    requests: Requests, pending: Pending, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    requests.failures = {"a": failure}
    for key in ("a", "b"):
        pending.add(key)
    for _ in range(3):
        pending.sweep()
    assert requests.sent == ["b"]
    assert caplog.messages == [f"Failed to do a: {failure}"]
    requests.failures = {}
    pending.sweep()
    assert requests.sent == ["b", "a"]


def test_an_engine_that_does_not_answer_gets_one_request(
    requests: Requests, pending: Pending
) -> None:
    requests.failures = {"a": AWAY}
    for key in ("a", "b"):
        pending.add(key)
    with pytest.raises(exception.EngineUnavailable):
        pending.sweep()
    assert requests.sent == []


def test_a_request_for_a_deleted_container_is_dropped(requests: Requests, pending: Pending) -> None:
    requests.failures = {"a": GONE}
    pending.add("a")
    pending.sweep()
    requests.failures = {}
    pending.sweep()
    assert requests.sent == []


def test_a_container_that_hangs_is_left_alone_for_a_while(
    requests: Requests, pending: Pending, now: list[float]
) -> None:
    requests.failures = {"a": HANGS}
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


def test_a_request_that_lasts_delays_no_other(
    requests: Requests, pending: Pending, begun: Begin
) -> None:
    requests.held = {"a"}
    sending = begun(lambda: pending.send("a"))
    assert requests.begun.wait(60)
    pending.add("b")
    pending.sweep()
    pending.send("c")
    assert requests.sent == ["b", "c"]
    requests.go_on.set()
    sending.join(60)
    pending.sweep()
    assert requests.sent == ["b", "c", "a"]


def test_a_request_waits_for_the_same_request_of_a_sweep(
    requests: Requests, pending: Pending, begun: Begin
) -> None:
    """The engine refuses the removal of a container that it removes already."""
    requests.held = {"a"}
    pending.add("a")
    begun(pending.sweep)
    assert requests.begun.wait(60)
    sending = begun(lambda: pending.send("a"))
    sending.join(0.2)
    assert sending.is_alive()
    requests.go_on.set()
    sending.join(60)
    assert requests.sent == ["a", "a"]
    assert requests.most_at_once == 1


def test_a_request_does_not_wait_for_ever(
    requests: Requests,
    pending: Pending,
    begun: Begin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pending_module, "_OTHER_SECONDS", 0.1)
    requests.held = {"a"}
    pending.add("a")
    sweeping = begun(pending.sweep)
    assert requests.begun.wait(60)
    pending.send("a")
    assert requests.sent == ["a"]
    requests.go_on.set()
    sweeping.join(60)
    assert requests.sent == ["a", "a"]
