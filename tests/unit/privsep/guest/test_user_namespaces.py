# SPDX-License-Identifier: Apache-2.0
import errno
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from novadocker import privsep
from novadocker.linux import openat
from novadocker.privsep.guest import user_namespaces
from novadocker.runtime import probe
from novadocker.runtime.tree import Fault


@pytest.fixture
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(openat, "_TRUSTED", frozenset({0, os.getuid()}))
    monkeypatch.setattr(privsep.storage_pctxt, "client_mode", False)
    return tmp_path


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that says how the program of the trial ends."""

    def call(found: subprocess.CompletedProcess[str] | Exception) -> None:
        def run(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(subprocess, "run", run)

    return call


def done(status: int, output: str = "", error: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], status, output, error)


def test_an_answer(data_root: Path, ends: Any) -> None:
    ends(done(0))
    assert user_namespaces.why_impossible(str(data_root)) == ""
    ends(done(0, "old kernel\n"))
    assert user_namespaces.why_impossible(str(data_root)) == "old kernel"
    assert list(data_root.iterdir()) == []


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (done(1, error="Traceback\nno room\n"), "the trial failed: no room"),
        (done(-9), "the trial failed: exit status -9"),
        (subprocess.TimeoutExpired("python3", 20), "longer than 20 seconds"),
        (OSError("no memory"), "no memory"),
    ],
)
def test_a_trial_that_fails(data_root: Path, ends: Any, found: Any, reason: str) -> None:
    ends(found)
    with pytest.raises(OSError, match=reason):
        user_namespaces.why_impossible(str(data_root))
    assert list(data_root.iterdir()) == []


def test_a_directory_that_stays_is_no_failure(
    data_root: Path, ends: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_path: str) -> None:
        raise OSError("busy")

    monkeypatch.setattr(shutil, "rmtree", fail)
    ends(done(0))
    assert user_namespaces.why_impossible(str(data_root)) == ""
    assert "of a trial of user namespaces: busy" in caplog.text


def test_directories_of_killed_trials(data_root: Path, ends: Any) -> None:
    old = time.time() - 1000
    for name in (".novadocker-0a_b9c2d", ".novadocker-0a_b9c2d.x", ".novadocker-short", "overlay2"):
        (data_root / name / "upper").mkdir(parents=True)
        os.utime(data_root / name, (old, old))
    (data_root / "outside").mkdir()
    (data_root / ".novadocker-link0000").symlink_to("outside")
    (data_root / ".novadocker-file0000").touch()
    # Another process may be trying at this moment.
    (data_root / ".novadocker-new00000").mkdir()
    kept = {path.name for path in data_root.iterdir()} - {".novadocker-0a_b9c2d"}
    ends(done(0))
    assert user_namespaces.why_impossible(str(data_root)) == ""
    assert {path.name for path in data_root.iterdir()} == kept


def fault(code: int) -> Fault:
    try:
        try:
            raise OSError(code, "x")
        except OSError as error:
            raise Fault("the kernel does not") from error
    except Fault as found:
        return found


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Fault("the kernel does not"), "the kernel does not"),
        (fault(errno.EINVAL), "the kernel does not"),
        (fault(errno.ENOSPC), ""),
        (OSError(errno.ENOSYS, "not implemented"), "[Errno 38] not implemented"),
        (OSError(errno.ENOMEM, "no memory"), ""),
    ],
)
def test_what_the_kernel_refuses(error: Any, reason: str) -> None:
    assert probe.refusal(error) == reason


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        ("mount proc:1", "cannot mount proc: Operation not permitted", "a user namespace cannot"),
        ("create other namespaces:28", "cannot create other namespaces: No space left", ""),
        ("", "the process that mounts /proc and /sys was killed", ""),
    ],
)
def test_answers_of_the_process_that_mounts(answer: str, error: str, reason: str) -> None:
    with pytest.raises((Fault, OSError), match=error) as raised:
        probe._check(answer)
    assert probe.refusal(raised.value)[:23] == reason


def test_the_program_tells_refusals_from_failures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(_folder: str) -> None:
        raise found

    monkeypatch.setattr(probe, "probe", end)
    monkeypatch.setattr("sys.argv", ["probe", "/x"])
    found: Exception = Fault("the kernel does not")
    probe.main()
    assert capsys.readouterr().out == "the kernel does not\n"
    found = OSError(errno.ENOSPC, "no room")
    with pytest.raises(SystemExit, match="no room"):
        probe.main()
    assert capsys.readouterr().out == ""
