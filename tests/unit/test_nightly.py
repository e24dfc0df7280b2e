# SPDX-License-Identifier: Apache-2.0
"""The commands of the nightly run, and its timer."""

import subprocess
from pathlib import Path

import pytest

from tests import CHECKOUT

PARTS = {
    "fuzz": "-m hypothesis --hypothesis-profile nightly tests/unit",
    "functional": "-m tests.functional",
    "tempest": "devcloud tempest",
    "test-guest": "-m pytest tests/guest",
    "test-install": "-m pytest tests/install",
    "test-engine-trixie": "--engine trixie tests/engine",
    "test-engine-forky": "--engine forky tests/engine",
    "test-engine-containerd": "--engine forky --containerd-store tests/engine/images",
    "horizon-test": "tests/horizon",
    "soak": "tests/engine/test_soak.py --steps 7 --seed 3",
}
"""Text that the command of each part contains."""


@pytest.mark.parametrize("broken", [None, *PARTS])
def test_a_part_that_fails_holds_back_no_other_and_is_told(
    tmp_path: Path, broken: str | None
) -> None:
    program, log = tmp_path / "python", tmp_path / "log"
    failure = PARTS[broken] if broken else "nothing fails"
    program.write_text(
        f'#!/bin/sh\necho "$*" >> {log}\ncase "$*" in *"{failure}"*) exit 1;; esac\n'
    )
    program.chmod(0o755)
    for folder in (tmp_path, tmp_path / "horizon/venv/bin"):
        folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / "horizon/venv/bin/python").symlink_to(program)
    done = subprocess.run(
        [
            *("make", "nightly", f"DEVCLOUD={program} devcloud", f"VENV={tmp_path}"),
            *(f"DEVCLOUD_DIR={tmp_path}", "STEPS=7", "SEED=3"),
        ],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) is (broken is None), done.stderr
    said = log.read_text()
    assert {name: words in said for name, words in PARTS.items()} == dict.fromkeys(PARTS, True)
    if broken:
        assert f": {broken}] Error 1" in done.stderr


def test_the_timer_starts_it() -> None:
    """Without ``Unit=``, a timer starts the service of the same name."""
    timer = lines("novadocker-nightly.timer")
    assert "OnCalendar=*-*-* 01:00" in timer
    assert not any(line.startswith("Unit=") for line in timer)
    assert {
        "Type=oneshot",
        "ExecStart=/usr/bin/make nightly",
        "ExecStopPost=/usr/bin/make down",
    } <= lines("novadocker-nightly.service")


def lines(unit: str) -> set[str]:
    return set((CHECKOUT / ".ci" / unit).read_text().splitlines())
