# SPDX-License-Identifier: Apache-2.0
"""Each command starts in an interpreter that has imported nothing else."""

import configparser
import functools
import os
import re
import subprocess
import sys

import pytest

from tests import CHECKOUT

_setup = configparser.ConfigParser()
_setup.read(CHECKOUT / "setup.cfg")
COMMANDS = {
    name.strip(): function.strip()
    for name, function in (
        line.split("=") for line in _setup["entry_points"]["console_scripts"].split("\n") if line
    )
}


@functools.cache
def help_text(name: str) -> str:
    """Start a command with ``--help``; return its output."""
    module, function = COMMANDS[name].split(":")
    program = f"""import sys
sys.argv = [{name!r}, "--help"]
from {module} import {function}
{function}()"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # novadocker-receive keeps its standard output for its answers.
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str) -> None:
    """Other tests have imported all of Nova's objects, which some modules need to be imported."""
    assert "usage:" in help_text(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_manual_page(name: str) -> None:
    """A page names all options of its command, but not those of oslo.config."""
    page = (CHECKOUT / f"docs/man/{name}.rst").read_text()
    if ".. include::" in page:
        page = (CHECKOUT / "docs/recover.rst").read_text()
    usage = set(re.findall(r"--[a-z][a-z-]+", help_text(name)))
    usage -= {"--help"}
    if "--config-dir" in usage:
        usage = {"--config-file"}
    assert usage - set(re.findall(r"\*\*(--[a-z-]+)", page)) == set()
