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
