# SPDX-License-Identifier: Apache-2.0
"""The source's end of a move, whatever the destination answers."""

import sys
import time
from pathlib import Path

import pytest
from nova import exception as nova_exception

from novadocker import exception
from novadocker.virt.docker.migration import destination, nova_records, protocol
from novadocker.virt.docker.migration.transports.direct import Apply, Load
from novadocker.virt.docker.migration.transports.registry import Fetch, Pull
from tests.unit.migration.hostile import NO_MESSAGES

UUID = "01234567-89ab-cdef-0123-456789abcdef"
ORDERS = [Apply(), Load(), protocol.Commit(), Pull(f"sha256:{'1' * 64}")]
# Longer than a test may take.
LONG_SECONDS = "600"


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait briefly for the errors of commands whose children keep standard error open."""
    monkeypatch.setattr(destination, "_ERROR_SECONDS", 0.5)


def command(answer: bytes, after: str = "exec cat >/dev/null", *, path: Path) -> list[str]:
    """Return a command that prints an answer, and then runs a shell command."""
    path.write_bytes(answer)
    return ["sh", "-c", f"cat {path}; {after}"]


@pytest.mark.parametrize("answer", NO_MESSAGES.values(), ids=NO_MESSAGES)
def test_what_is_no_answer(tmp_path: Path, answer: bytes) -> None:
    with (
        pytest.raises(exception.ResizeRefused, match="does not answer"),
        destination.connect(
            command(answer, "true", path=tmp_path / "answer"), "host", UUID
        ) as found,
    ):
        found.expect(protocol.Ready, 30)


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: type(order).__name__)
@pytest.mark.parametrize("answer", [b"1\n", b"[]\n", b"[" * 200_000 + b"\n"])
def test_nova_rolls_back_what_has_no_answer(
    tmp_path: Path, answer: bytes, order: protocol.Order
) -> None:
    with (
        pytest.raises(nova_exception.InstanceFaultRollback, match="does not answer"),
        nova_records.rolled_back(),
        destination.connect(command(answer, path=tmp_path / "answer"), "host", UUID) as found,
    ):
        found.ask(order)


@pytest.mark.parametrize(
    "answer", [b"", b"x", b'{"ready": true'], ids=["silence", "a byte", "part of a line"]
)
def test_an_answer_that_does_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(protocol, "LINE_SECONDS", 0.2)
    begin = time.monotonic()
    with (
        pytest.raises(exception.ResizeRefused, match="does not answer"),
        destination.connect(
            command(answer, f"exec sleep {LONG_SECONDS}", path=tmp_path / "answer"), "host", UUID
        ) as found,
    ):
        found.expect(protocol.Ready, 1)
    assert time.monotonic() - begin < 20


def test_each_order_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fetch, "SECONDS", 0.2)
    begin = time.monotonic()
    with (
        pytest.raises(exception.ResizeRefused, match="does not answer"),
        destination.connect(["sleep", LONG_SECONDS], "host", UUID) as found,
    ):
        found.ask(Fetch(f"sha256:{'1' * 64}"))
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    ("answer", "order"),
    [
        (b'{"loaded": true}\n', Apply()),
        (b'{"applied": true}\n', protocol.Commit()),
        (b'{"ready": true, "image": true}\n', protocol.Commit()),
        (b'{"kept": 1}\n', protocol.Commit()),
        (b'{"commit": true}\n', protocol.Commit()),
    ],
)
def test_the_answer_to_something_else(tmp_path: Path, answer: bytes, order: protocol.Order) -> None:
    with (
        pytest.raises(exception.ResizeRefused, match="does not answer"),
        destination.connect(command(answer, path=tmp_path / "answer"), "host", UUID) as found,
    ):
        found.ask(order)


def test_a_refusal(tmp_path: Path) -> None:
    answer = protocol.encode(protocol.Refused("it is full"))
    with (
        pytest.raises(exception.ResizeRefused, match="refuses the server: it is full"),
        destination.connect(command(answer, path=tmp_path / "answer"), "host", UUID) as found,
    ):
        found.ask(Apply())


def test_a_refusal_before_the_data_is_sent(tmp_path: Path) -> None:
    answer = protocol.encode(protocol.Refused("it is full"))
    with (
        pytest.raises(exception.ResizeRefused, match="refuses the server: it is full"),
        destination.connect(
            command(answer, "exec <&-", path=tmp_path / "answer"), "host", UUID
        ) as found,
    ):
        found.write(bytes(100 << 20))


def test_the_last_words_of_the_command(caplog: pytest.LogCaptureFixture) -> None:
    words = ["sh", "-c", "echo warning >&2; echo no route to host >&2; exit 255"]
    with (
        pytest.raises(exception.ResizeRefused, match="no route to host"),
        destination.connect(words, "host", UUID) as found,
    ):
        found.expect(protocol.Ready, 30)
    assert [vars(record)["instance_uuid"] for record in caplog.records] == [UUID]


def test_a_destination_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.2)
    begin = time.monotonic()
    with (
        pytest.raises(exception.ResizeRefused, match="read no data"),
        destination.connect(["sleep", LONG_SECONDS], "host", UUID) as found,
    ):
        found.write(bytes(1 << 20))
    assert time.monotonic() - begin < 20


def test_what_is_sent(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(
        "import sys\n"
        "right = sys.stdin.readline() == '{\"bytes\": 300000}\\n'\n"
        "right = sys.stdin.read(300000) == 'x' * 300000 and right\n"
        "print('{\"kept\": true}' if right else 'other')\n"
    )
    with destination.connect([sys.executable, str(script)], "host", UUID) as found:
        found.send(protocol.Frame(300_000))
        found.write(b"x" * 300_000)
        assert found.expect(protocol.Kept, 30) == protocol.Kept()


def test_the_host_in_the_command() -> None:
    with (
        destination.connect(["sh", "-c", 'echo "$0" >&2', "to-{host}"], "192.0.2.9", UUID) as found,
        pytest.raises(exception.ResizeRefused, match=r"to-192\.0\.2\.9"),
    ):
        found.expect(protocol.Ready, 30)
