# SPDX-License-Identifier: Apache-2.0
"""The operator's command that verifies images of registries, as real processes."""

import os
import time
from pathlib import Path

import pytest

from novadocker import exception
from novadocker.virt.docker.images import verification
from tests.waiting import until

NAME = "r.example:5000/base/web@sha256:" + "5" * 64


def shell(script: str, *words: str) -> list[str]:
    return ["sh", "-c", script, "verify", *words]


def test_the_image_is_the_last_argument_and_no_shell_reads_it(tmp_path: Path) -> None:
    got = tmp_path / "got"
    script = f'printf "%s\\n" "$@" >{got}; read -r line && exit 1; exit 0'
    verification.verify(shell(script, "--key", "a b;$(exit)"), NAME)
    assert got.read_text().splitlines() == ["--key", "a b;$(exit)", NAME]


@pytest.mark.parametrize("end", ["exit 1", "exit 255", "kill -9 $$"])
def test_messages_are_only_in_the_log(end: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(exception.ImageNotVerified, match="refuses the image") as caught:
        verification.verify(shell(f"echo out; printf 'no\\nsuch key' >&2; {end}"), NAME)
    assert "such key" not in str(caught.value)
    assert r"no\nsuch key" in caplog.text
    assert NAME in caplog.text


def test_a_flood_of_messages(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(exception.ImageNotVerified, match="refuses"):
        verification.verify(shell("yes | head -c 20000000 >&2; echo END >&2; exit 1"), NAME)
    assert r"END\n" in caplog.text
    assert len(caplog.text) < 10_000


@pytest.mark.parametrize(
    "script",
    [
        "sleep 600 & echo $! >{path}; wait",
        # The command closes its standard error and ends without its child.
        "sleep 600 & echo $! >{path}; exec 2>&-; wait",
        "sleep 600 & echo $! >{path}; exit 0",
        "sleep 600 & echo $! >{path}; while :; do echo x; done >&2",
    ],
    ids=["waits", "silent", "child", "chatty"],
)
def test_the_command_and_its_children_end_in_time(tmp_path: Path, script: str) -> None:
    path, begin = tmp_path / "pid", time.monotonic()
    with pytest.raises(exception.VerificationFailed, match="too long"):
        verification.verify(shell(script.format(path=path)), NAME, 0.5)
    assert time.monotonic() - begin < 10
    pid = int(path.read_text())
    until(lambda: not _lives(pid))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("mode", [None, 0o644])
def test_a_command_that_cannot_be_run(
    tmp_path: Path, mode: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    program = tmp_path / "verify"
    if mode is not None:
        program.touch(mode)
    with pytest.raises(exception.VerificationFailed, match="this host cannot run") as caught:
        verification.verify([str(program)], NAME)
    assert str(program) not in str(caught.value)
    assert str(program) in caplog.text


def test_no_descriptor_is_left() -> None:
    before = len(os.listdir("/proc/self/fd"))
    verification.verify(["true"], NAME)
    assert len(os.listdir("/proc/self/fd")) == before
