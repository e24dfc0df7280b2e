# SPDX-License-Identifier: Apache-2.0
"""The targets of the Makefile: what they run, and in which order."""

import os
import re
import subprocess

from tests import CHECKOUT


def commands(*targets: str) -> list[str]:
    """Return the commands of targets, of the default target without any; run none of them."""
    # the variables of a make that runs these tests
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    done = subprocess.run(
        ["make", "--dry-run", *targets, "DEVCLOUD=devcloud", "VENV=venv"],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    started = re.compile(r"(?:\w+=\w* )?(?:devcloud|venv)\b")
    return [line for line in done.stdout.splitlines() if started.match(line)]


def test_no_target_is_a_file() -> None:
    """A file with the name of a target would keep make from running it."""
    text = (CHECKOUT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY:((?:.*\\\n)*.*)", text, re.MULTILINE)
    named = {
        name
        for line in re.findall(r"^([a-z][a-z0-9 -]*):(?!=)", text, re.MULTILINE)
        for name in line.split()
    }
    assert len(named) > 30
    assert named - set(phony.split()) == set()


def test_check_is_the_first_target_and_needs_no_root() -> None:
    found = commands("check")
    assert found == commands()
    assert found[0] == "devcloud environment"
    assert "devcloud install" not in found
    checks = ("ruff check .", "ruff format --check .", "mypy", "lint-imports --no-logo")
    assert {f"venv/{check}" for check in checks} <= set(found)
    (tests,) = [command for command in found if "pytest" in command]
    assert "-n logical" in tests
    assert "--cov" in tests
    assert "tests/unit" in tests.split()


def test_the_cloud_is_tested_last_and_after_all_other_levels() -> None:
    found = commands("test")
    assert found[0] == "devcloud install"
    assert found[-1].endswith("tests/cloud")
    levels = (
        *("tests/unit", "tests/engine", "tests/guest", "tests/engine/test_soak.py", "nova31"),
        "--engine forky",
    )
    with_ovn = "DEVCLOUD_NETWORK=ovn"
    for level in (*levels, with_ovn):
        assert any(level in command for command in found[:-1])


def test_each_long_test_of_the_cloud_runs_in_the_nightly() -> None:
    (command,) = [found for found in commands("test-long") if "tests/cloud" in found]
    long = {
        f"tests/cloud/{path.name}"
        for path in (CHECKOUT / "tests/cloud").glob("test_*.py")
        if re.search(r"long_run|--every-step", path.read_text())
    }
    assert len(long) > 5
    assert long - set(command.split()) == set()


def test_the_part_of_the_installation_has_tests_that_exist() -> None:
    command = commands("test-install-part")[-1]
    named = re.findall(r"(tests/install/\w+\.py)::(test_\w+)", command)
    assert len(named) > 1
    for path, name in named:
        assert f"def {name}(" in (CHECKOUT / path).read_text()
