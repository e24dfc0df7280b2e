# SPDX-License-Identifier: Apache-2.0
"""Privileged functions called as nova-compute calls them: in a process with few capabilities."""

import subprocess
import sys
from pathlib import Path

from tests import CHECKOUT

_BEGIN = """
import sys
from oslo_config import cfg
from oslo_privsep import priv_context
cfg.CONF([], project="nova")
priv_context.init(root_helper=["env", "PATH=" + sys.argv[1]])
"""


def run(calls: str, *arguments: str | Path) -> None:
    """Run a program that calls privileged functions, and check that it succeeds.

    :param calls: the program's text
    :param arguments: the program's, from ``sys.argv[2]`` on
    """
    path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + calls, path, *arguments],
        env={"PYTHONPATH": str(CHECKOUT), "PATH": path},
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
