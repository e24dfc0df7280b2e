# SPDX-License-Identifier: Apache-2.0
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from novadocker.linux import signals

NUMBER = signal.SIGRTMIN + 3
PROGRAM = """
import signal, sys
number = int(sys.argv[1])
{}
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("statement", "handled", "default"),
    [
        ("signal.signal(number, lambda *_: None)", True, False),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, [number])", True, False),
        ("signal.signal(number, signal.SIG_IGN)", False, False),
        ("pass", False, True),
    ],
)
def test_what_a_process_does_with_a_signal(statement: str, handled: bool, default: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(statement), str(NUMBER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        assert signals.handles(process.pid, NUMBER) == handled
        assert signals.leaves_default(process.pid, NUMBER) == default
        # The signal before and the one after are not meant.
        assert not signals.handles(process.pid, NUMBER + 1)
        assert not signals.handles(process.pid, NUMBER - 1)
        process.stdin.close()


def test_a_process_that_has_ended(tmp_path: Path) -> None:
    assert signals.handles(os.getpid(), NUMBER, tmp_path)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_a_process_that_the_kernel_hides(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As with hidepid, proc(5)."""

    def read(_path: Path) -> bytes:
        raise OSError(number, "hidden")

    monkeypatch.setattr(Path, "read_bytes", read)
    assert signals.handles(1, NUMBER)
    assert not signals.leaves_default(1, NUMBER)


@pytest.mark.parametrize(
    "name", [b"a\x0cSig", b"a\x0cSigBlk:\tff", b"a\x1cSigCgt:\tx", b"\xff", b"a\x85Sig"]
)
def test_the_name_of_a_process_is_not_taken_for_a_line(name: bytes) -> None:
    """As prctl(2) sets it, PR_SET_NAME."""
    program = f"""
import ctypes, sys
ctypes.CDLL(None).prctl(15, {name!r}, 0, 0, 0)
print(flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        assert not signals.handles(process.pid, NUMBER)
        assert signals.leaves_default(process.pid, NUMBER)
        process.stdin.close()
