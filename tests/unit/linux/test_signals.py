# SPDX-License-Identifier: Apache-2.0
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
