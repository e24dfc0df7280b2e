# SPDX-License-Identifier: Apache-2.0
import itertools
import socket
import subprocess
import time
from collections.abc import Iterable
from dataclasses import replace

import pytest

from novadocker import exception
from novadocker.privsep.guest import containerd
from novadocker.virt.docker.containers import lifecycle
from novadocker.virt.docker.model import Terminal
from tests.unit.fakes import FakeEngine


def engine_with(status: str, **kwargs: object) -> FakeEngine:
    engine = FakeEngine(**kwargs)  # type: ignore[arg-type]
    engine.add("c", {}, status)
    return engine


@pytest.mark.parametrize(
    ("status", "timeout", "expected"),
    [
        ("running", 60, [("signal", "id-c", "SIGTERM")]),
        ("running", 0, [("signal", "id-c", "SIGKILL")]),
        ("paused", 60, [("unpause", "id-c"), ("signal", "id-c", "SIGTERM")]),
        ("exited", 60, []),
        ("created", 0, []),
        ("dead", 0, []),
    ],
)
def test_stop(status: str, timeout: int, expected: list[tuple[str, ...]]) -> None:
    engine = engine_with(status)
    lifecycle.stop(engine, "c", timeout)
    assert engine.calls == expected


SIGNAL = ("signal", "id-c", "SIGRTMIN+3")
POWER_OFF = ("terminal", "id-c", "poweroff")
TERM = ("signal", "id-c", "SIGTERM")
KILL = ("signal", "id-c", "SIGKILL")
SHELL = ("terminal", "id-c", "sh", "-c", lifecycle._END_OTHERS.format(15))


class Disposition:
    """What the first process does with signals."""

    def __init__(self, handled: bool, ignored: bool) -> None:
        self._handled = handled
        self._ignored = ignored
        self.asked: set[tuple[int, int]] = set()

    def handles(self, process: int, number: int) -> bool:
        self.asked.add((process, number))
        return self._handled

    def leaves_default(self, process: int, number: int) -> bool:
        self.asked.add((process, number))
        return not self._handled and not self._ignored


@pytest.mark.parametrize(
    ("stop_signal", "disposition", "stubborn", "expected"),
    [
        ("SIGRTMIN+3", Disposition(True, False), (), [SIGNAL]),
        # busybox or sysvinit
        ("SIGRTMIN+3", Disposition(False, True), (), [POWER_OFF]),
        ("SIGRTMIN+3", Disposition(False, False), (), [POWER_OFF]),
        ("SIGRTMIN+3", Disposition(False, True), ("poweroff",), [POWER_OFF, SIGNAL]),
        ("SIGTERM", Disposition(True, False), (), [TERM]),
        ("SIGTERM", Disposition(False, True), (), [TERM]),
        # a shell without a trap, whose children handle the signal; then one that goes on
        ("SIGTERM", Disposition(False, False), (), [SHELL]),
        ("SIGTERM", Disposition(False, False), ("quiet",), [SHELL, KILL]),
        # an image without a shell
        ("SIGTERM", Disposition(False, False), ("sh",), [SHELL, TERM]),
        # A process does nothing at this signal.
        ("SIGWINCH", Disposition(False, False), (), [("signal", "id-c", "SIGWINCH")]),
    ],
)
def test_stop_of_a_first_process(
    monkeypatch: pytest.MonkeyPatch,
    stop_signal: str,
    disposition: Disposition,
    stubborn: tuple[str, ...],
    expected: list[tuple[str, ...]],
) -> None:
    engine = engine_with("running", stubborn=frozenset(stubborn))
    found = engine.containers["id-c"]
    engine.containers["id-c"] = replace(found, stop_signal=stop_signal)
    monkeypatch.setattr(lifecycle, "signals", disposition)
    lifecycle.stop(engine, "c", 60)
    assert engine.calls == expected
    assert {process for process, _ in disposition.asked} <= {found.pid}
    assert engine.containers["id-c"].status == "exited"


@pytest.mark.parametrize(
    ("output", "early", "seconds"),
    [
        ([b"novadocker: all others", b" have ended\r\n"], b"", 1),
        ([], lifecycle._ALL_ENDED, 1),
        # The shell has no sleep, or another process killed it.
        ([b"sh: sleep: not found\r\n"], b"", 60),
        ([], b"", 60),
    ],
)
def test_the_others_get_their_time_although_the_shell_fails(
    monkeypatch: pytest.MonkeyPatch, output: list[bytes], early: bytes, seconds: int
) -> None:
    engine = engine_with("running", stubborn=frozenset({"SIGTERM"}))
    found = engine.containers["id-c"]
    engine.containers["id-c"] = replace(found, stop_signal="SIGTERM")
    monkeypatch.setattr(lifecycle, "signals", Disposition(False, False))
    waits: list[float] = []

    def wait(_container: str, timeout: float) -> int:
        waits.append(timeout)
        return 0

    def open_terminal(_container: str, _command: Iterable[str]) -> Terminal:
        ours, theirs = socket.socketpair()
        for part in output:
            theirs.send(part)
        theirs.close()
        return Terminal(ours, early, "/exec/1")

    monkeypatch.setattr(engine, "wait_container", wait)
    monkeypatch.setattr(engine, "open_terminal", open_terminal)
    lifecycle.stop(engine, "c", 60)
    assert waits == [pytest.approx(seconds, rel=0.1)]


@pytest.mark.parametrize(
    ("sleep", "told"), [('[ "$1" = 1 ]', True), ("true", True), ("false", False)]
)
def test_the_shell_that_ends_the_others(sleep: str, told: bool) -> None:
    """A sleep may know no fractions; without a sleep, the shell tells nothing."""
    script = f"""
n=0
kill() {{ [ "$1" != -0 ] || {{ n=$((n + 1)); [ $n -le 2 ]; }}; }}
sleep() {{ {sleep}; }}
{lifecycle._END_OTHERS.format(15)}
"""
    done = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, check=False)
    assert (lifecycle._ALL_ENDED in done.stdout) == told


def test_stop_asks_once_then_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_with("running", stubborn=frozenset({"SIGTERM"}))
    waits: list[float] = []

    def wait(container: str, timeout: float) -> int | None:
        waits.append(timeout)
        return None if engine.containers["id-c"].status == "running" else 137

    monkeypatch.setattr(engine, "wait_container", wait)
    lifecycle.stop(engine, "c", timeout=25)
    assert [call[-1] for call in engine.calls] == ["SIGTERM", "SIGKILL"]
    assert waits[0] == 25


def test_stop_reports_a_process_that_survives() -> None:
    engine = engine_with("running", stubborn=frozenset({"SIGTERM", "SIGKILL"}))
    with pytest.raises(exception.EngineError, match="survived SIGKILL"):
        lifecycle.stop(engine, "c", 0)


def test_stop_says_when_the_engine_is_away() -> None:
    engine = engine_with("running", away=True)
    with pytest.raises(exception.EngineUnavailable):
        lifecycle.stop(engine, "c", 5)


def start(engine: FakeEngine, grace: float) -> None:
    with lifecycle.started(engine, "c", grace):
        pass


def test_start_reports_code_and_last_lines() -> None:
    engine = engine_with("created", exit_code=3)
    with pytest.raises(
        exception.ProcessEnded, match=r"exit status 3; its output: one \| two \| three"
    ):
        start(engine, 0.1)


@pytest.mark.parametrize("grace", [0.0, 0.1])
def test_start(grace: float) -> None:
    engine = engine_with("created")
    start(engine, grace)
    assert engine.containers["id-c"].status == "running"


def test_start_asks_the_kernel_when_the_engine_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_with("created", exit_code=3)
    waits: list[float] = []

    def wait(container: str, timeout: float) -> int | None:
        waits.append(timeout)
        return None if len(waits) == 1 else 3

    monkeypatch.setattr(engine, "wait_container", wait)
    # An ended container has no process.
    with pytest.raises(exception.ProcessEnded, match="exit status 3"):
        start(engine, 100)
    assert waits == [pytest.approx(100, rel=0.1), 10]


def test_start_counts_the_body_in() -> None:
    engine = engine_with("created")
    with lifecycle.started(engine, "c", 1e-9) as found:
        engine.away = True
    # The driver asked only the kernel.
    assert found.pid


def test_start_reports_the_end_and_not_what_came_of_it() -> None:
    engine = engine_with("created", exit_code=3)
    with (
        pytest.raises(exception.ProcessEnded),
        lifecycle.started(engine, "c", 0.1),
    ):
        raise exception.LimitsNotKept(reason="its control group is gone")


def test_start_reports_what_fails_for_one_that_lives() -> None:
    engine = engine_with("created")
    with (
        pytest.raises(exception.LimitsNotKept),
        lifecycle.started(engine, "c", 0.1),
    ):
        raise exception.LimitsNotKept(reason="the kernel did not want to")


TASK = "0123456789abcdef" * 4
LEFT = f"task {TASK}: already exists"
CLOSED = f"novadocker: the engine has closed the terminal of container {TASK}"
OTHER = "fedcba9876543210" * 4


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the containers whose shims were ended."""
    found: list[str] = []
    monkeypatch.setattr(containerd, "end_shim", found.append)
    now = itertools.count()
    monkeypatch.setattr(lifecycle.time, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(lifecycle, "_TRY_AGAIN_SECONDS", 0.001)
    return found


def refusing(monkeypatch: pytest.MonkeyPatch, *reasons: str) -> FakeEngine:
    """Return an engine that refuses one start per reason."""
    engine = engine_with("exited")
    engine.containers = {TASK: replace(engine.containers["id-c"], id=TASK)}
    left, start_container = [*reasons], engine.start_container

    def refuse(container: str) -> None:
        if left:
            raise exception.EngineError(operation="the start", reason=left.pop(0))
        start_container(container)

    monkeypatch.setattr(engine, "start_container", refuse)
    return engine


@pytest.mark.parametrize(
    ("reasons", "shims_ended"),
    [
        ((CLOSED,), []),
        ((LEFT,), [TASK]),
        # containerd needs some time.
        ((LEFT, LEFT, CLOSED), [TASK, TASK]),
    ],
)
def test_start_after_the_engine_lost_sight_of_an_end(
    monkeypatch: pytest.MonkeyPatch,
    ended: list[str],
    reasons: tuple[str, ...],
    shims_ended: list[str],
) -> None:
    engine = refusing(monkeypatch, *reasons)
    start(engine, 0)
    assert engine.containers[TASK].status == "running"
    assert ended == shims_ended


@pytest.mark.parametrize("reasons", [["no space left"], [LEFT] * 100, [CLOSED] * 100])
def test_start_that_is_refused(
    monkeypatch: pytest.MonkeyPatch, ended: list[str], reasons: list[str]
) -> None:
    with pytest.raises(exception.EngineError, match=reasons[0]):
        start(refusing(monkeypatch, *reasons), 0)
    assert len(ended) < 20


@pytest.mark.parametrize(
    "reason",
    [
        LEFT.replace(TASK, OTHER),
        CLOSED.replace(TASK, OTHER),
        f'exec: "{LEFT}": executable file not found in $PATH',
        f'exec: "{CLOSED}": executable file not found in $PATH',
    ],
)
def test_an_image_chooses_neither_a_shim_nor_another_start(
    monkeypatch: pytest.MonkeyPatch, ended: list[str], reason: str
) -> None:
    engine = refusing(monkeypatch, reason)
    with pytest.raises(exception.EngineError):
        start(engine, 0)
    assert engine.containers[TASK].status == "exited"
    assert ended == []


def test_the_starts_of_a_container_have_a_pause_between_them(
    monkeypatch: pytest.MonkeyPatch, ended: list[str]
) -> None:
    monkeypatch.setattr(lifecycle, "_TRY_AGAIN_SECONDS", 0.2)
    begin = time.perf_counter()
    start(refusing(monkeypatch, LEFT), 0)
    assert time.perf_counter() - begin >= 0.2
