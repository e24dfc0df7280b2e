# SPDX-License-Identifier: Apache-2.0
import ctypes
import os
import shutil
from pathlib import Path

import pytest

from novadocker.linux import user_files

INOTIFY = "anon_inode:inotify"


def put_process(proc: Path, process: int, user: int, *targets: str) -> None:
    """Create the files of a process of the host's user namespace."""
    folder = proc / str(process)
    (folder / "fd").mkdir(parents=True)
    (folder / "status").write_text(f"Name:\tx\nUid:\t7\t{user}\t7\t7\n")
    (folder / "ns").symlink_to(proc / "self/ns")
    for number, target in enumerate(targets):
        (folder / "fd" / str(number)).symlink_to(target)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/user").touch()
    (tmp_path / "uptime").touch()
    return tmp_path


def test_each_user(proc: Path) -> None:
    put_process(proc, 1, 0, "/dev/null", INOTIFY, "pipe:[1]", "socket:[1]")
    put_process(proc, 2, 0, INOTIFY, "pipe:[1]", "pipe:[2]", "/tmp/inotify")
    put_process(proc, 3, 1000, "inotify", INOTIFY, INOTIFY, "pipe:[3]", "pipe:[3]")
    found = user_files.count(str(proc))
    assert found.inotify == {0: 2, 1000: 3}
    assert found.pipes == {0: 2, 1000: 1}
    assert user_files.highest(found.inotify) == 3
    assert user_files.highest({}) == 0


def test_a_process_that_ends_meanwhile(proc: Path) -> None:
    put_process(proc, 1, 5, INOTIFY)
    (proc / "2").mkdir()
    (proc / "3").mkdir()
    (proc / "3/status").write_text("Name:\tx\n")
    assert user_files.count(str(proc)).inotify == {5: 1}


def test_a_host_with_many_descriptors(proc: Path) -> None:
    """The count ends, and takes no longer than for as many as it counts."""
    for process in range(10):
        put_process(proc, process, 5, *[INOTIFY] * 100)
    read: list[str] = []
    readlink = os.readlink

    def note(path: str) -> str:
        read.append(path)
        return readlink(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "readlink", note)
        assert user_files.count(str(proc), most=250).inotify == {5: 250}
    assert len(read) <= 251


def test_a_path_that_the_kernel_cannot_tell_ends_nothing(tmp_path: Path) -> None:
    deepest = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(20):
            os.mkdir("d" * 250, dir_fd=deepest)
            above, deepest = deepest, os.open("d" * 250, os.O_RDONLY, dir_fd=deepest)
            os.close(above)
        with pytest.raises(OSError, match="too long"):
            os.readlink(f"/proc/self/fd/{deepest}")
        user_files.count()
    finally:
        os.close(deepest)
        shutil.rmtree(tmp_path)


def test_this_process() -> None:
    libc = ctypes.CDLL(None)
    before = user_files.count().inotify[os.geteuid()]
    made = [libc.inotify_init1(os.O_CLOEXEC) for _ in range(50)]
    try:
        # Other processes of the user may begin or end meanwhile.
        assert user_files.count().inotify[os.geteuid()] - before > 25
    finally:
        for descriptor in made:
            os.close(descriptor)
