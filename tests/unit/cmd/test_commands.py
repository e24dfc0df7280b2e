# SPDX-License-Identifier: Apache-2.0
"""Each command starts in an interpreter that has imported nothing else."""

import configparser
import os
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


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str) -> None:
    """Other tests have imported all of Nova's objects, which some modules need to be imported."""
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
    assert "usage:" in done.stdout + done.stderr
