# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
from collections.abc import Iterator

import pytest

from novadocker.linux import cgroup, openat

ID = "c" * 64


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process that is in no container."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_the_root_of_a_process_that_ends_during_the_check(
    other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another tenant's process had the id when the root was opened, and ended before the check."""

    def reused(pid: int) -> str:
        assert pid == other.pid
        other.kill()
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return ID

    monkeypatch.setattr(cgroup, "container_of_process", reused)
    before = os.listdir("/proc/self/fd")
    with (
        pytest.raises(ProcessLookupError, match="is not in container"),
        openat.open_root(ID, other.pid),
    ):
        pass
    assert os.listdir("/proc/self/fd") == before


def test_the_root_of_a_living_process(
    other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "container_of_process", lambda _: ID)
    with openat.open_root(ID, other.pid) as root:
        assert os.fstat(root).st_ino == os.stat("/").st_ino
    with pytest.raises(ProcessLookupError), openat.open_root("d" * 64, other.pid):
        pass
