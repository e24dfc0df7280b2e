# SPDX-License-Identifier: Apache-2.0
"""Calls that need no privilege; tests/engine makes the others as root."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from novadocker.linux import libc

RESOLVED = os.O_PATH | os.O_CLOEXEC


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    """A file descriptor of a directory with a link that leads out of it."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("inside")
    (tmp_path / "link").symlink_to("/etc/passwd")
    descriptor = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def read(descriptor: int) -> str:
    try:
        return Path(f"/proc/self/fd/{descriptor}").read_text()
    finally:
        os.close(descriptor)


def test_links_lead_below_the_root_only_if_the_caller_asks(root: int) -> None:
    assert read(libc.openat2(root, "link", RESOLVED, libc.RESOLVE_IN_ROOT)) == "inside"
    assert read(libc.openat2(root, "link", RESOLVED, 0)) == Path("/etc/passwd").read_text()


def test_fault_names_the_path_and_the_cause(root: int) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        libc.openat2(root, "etc/absent", RESOLVED, libc.RESOLVE_IN_ROOT)
    assert caught.value.filename == "etc/absent"
    with pytest.raises(NotADirectoryError):
        libc.openat2(root, "etc/passwd/x", RESOLVED, libc.RESOLVE_IN_ROOT)
    with pytest.raises(FileNotFoundError) as caught:
        libc.clone_mount("/nonexistent")
    assert caught.value.filename == "/nonexistent"
    for call, name in (
        (lambda: libc.syncfs(-1), "syncfs"),
        (lambda: libc.setns(-1, libc.CLONE_NEWNET), "setns"),
    ):
        with pytest.raises(OSError, match=name) as failed:
            call()
        assert failed.value.errno == errno.EBADF


def test_file_system_of_an_open_file_is_written(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        libc.syncfs(file.fileno())
