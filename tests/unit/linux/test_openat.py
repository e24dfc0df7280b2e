# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture
def top(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("path", ["../beside", "/etc/passwd", "link/passwd", "up/../.."])
def test_no_path_leads_out_of_a_directory(tmp_path: Path, top: int, path: str) -> None:
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "up").mkdir()
    with pytest.raises(OSError, match=r"cross-device|symbolic links"):
        openat.open_inside(top, path, os.O_RDONLY)


def test_a_held_link_is_read_and_not_followed(tmp_path: Path, top: int) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with openat.held(top, "link") as file:
        assert file.target() == "/etc/passwd"
        assert file.attributes() == {}
        with pytest.raises(OSError, match="not a regular file"), file.opened():
            pass


def test_a_held_pipe_is_not_opened(tmp_path: Path, top: int) -> None:
    """Opening it would wait for its other end for ever."""
    os.mkfifo(tmp_path / "pipe")
    with (
        openat.held(top, "pipe") as file,
        pytest.raises(OSError, match="not a regular file"),
        file.opened(),
    ):
        pass


def test_a_held_file_stays_the_same(tmp_path: Path, top: int) -> None:
    (tmp_path / "file").write_text("mine")
    with openat.held(top, "file") as file:
        (tmp_path / "file").unlink()
        (tmp_path / "file").symlink_to("/etc/passwd")
        with file.opened() as descriptor:
            assert os.read(descriptor, 100) == b"mine"


def test_attributes_that_vanish_are_left_out(
    tmp_path: Path, top: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    try:
        os.setxattr(tmp_path / "file", "user.kept", b"1")
    except OSError as error:
        pytest.skip(f"this file system has no user attributes: {error}")
    monkeypatch.setattr(os, "listxattr", lambda _place: ["user.gone", "user.kept"])
    with openat.held(top, "file") as file:
        assert file.attributes() == {"user.kept": b"1"}
