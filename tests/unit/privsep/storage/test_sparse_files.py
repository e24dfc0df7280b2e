# SPDX-License-Identifier: Apache-2.0
"""Holes of marked files."""

import os
import subprocess
from pathlib import Path

import pytest

from novadocker.privsep.storage import sparse_files

PAGE = 4096


def test_pages_of_zeros_become_holes(tmp_path: Path) -> None:
    pages = [b"a" * PAGE, bytes(PAGE), b"b" * PAGE, bytes(3 << 20), b"c" * PAGE, bytes(PAGE + 7)]
    content = b"".join(pages)
    path = tmp_path / "file"
    path.write_bytes(content)
    before = path.stat().st_blocks
    with path.open("r+b") as file:
        sparse_files.punch_zeros(file.fileno())
        begin = os.lseek(file.fileno(), 0, os.SEEK_HOLE)
    assert begin == PAGE
    assert path.read_bytes() == content
    assert path.stat().st_blocks <= before - (3 << 20) // 512


def test_marked_files_start_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_files, "MARK", "user.novadocker.sparse")
    monkeypatch.setattr(subprocess, "Popen", lambda *_args, **_options: pytest.fail("a process"))
    for name in ("marked", "other"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    try:
        os.setxattr(tmp_path / "marked", sparse_files.MARK, b"1")
    except OSError as error:
        pytest.skip(f"this file system has no user attributes: {error}")
    top = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sparse_files._dig(top)
    finally:
        os.close(top)
    assert (tmp_path / "marked").stat().st_blocks == 0
    assert (tmp_path / "marked").stat().st_mtime_ns == 10**18
    assert sparse_files.MARK not in os.listxattr(tmp_path / "marked")
    assert (tmp_path / "other").stat().st_blocks


class Counted:
    """The requests to the kernel that the work on marked files makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.holes = self.read = 0
        punch, pread = sparse_files.libc.punch_hole, os.pread

        def count_hole(descriptor: int, begin: int, size: int) -> None:
            self.holes += 1
            punch(descriptor, begin, size)

        def count_bytes(descriptor: int, size: int, position: int) -> bytes:
            content = pread(descriptor, size, position)
            self.read += len(content)
            return content

        monkeypatch.setattr(sparse_files.libc, "punch_hole", count_hole)
        monkeypatch.setattr(os, "pread", count_bytes)


@pytest.mark.parametrize("mib", [4, 16])
def test_a_forged_mark_costs_time_that_is_linear_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mib: int
) -> None:
    """The worst file has every other page full of zeros: one read, and a hole for two pages."""
    counted = Counted(monkeypatch)
    path = tmp_path / "file"
    path.write_bytes((b"a" * PAGE + bytes(PAGE)) * ((mib << 20) // (2 * PAGE)))
    size = path.stat().st_size
    with path.open("r+b") as file:
        sparse_files.punch_zeros(file.fileno())
    assert counted.read == size
    assert counted.holes <= size // (2 * PAGE)


@pytest.mark.parametrize("count", [100, 400])
def test_forged_marks_cost_time_that_is_linear_in_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(sparse_files, "MARK", "user.novadocker.sparse")
    for number in range(count):
        path = tmp_path / str(number)
        path.write_bytes(bytes(2 * PAGE))
        try:
            os.setxattr(path, sparse_files.MARK, b"1")
        except OSError as error:
            pytest.skip(f"this file system has no user attributes: {error}")
    counted = Counted(monkeypatch)
    top = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sparse_files._dig(top)
    finally:
        os.close(top)
    assert (counted.holes, counted.read) == (count, 2 * PAGE * count)
