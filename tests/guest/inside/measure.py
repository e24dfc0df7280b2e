# SPDX-License-Identifier: Apache-2.0
"""The network benchmark in the guest, whose kernel has Open vSwitch's datapath.

``make bench-network-guest`` prints the figures and checks no target.
"""

import subprocess
import sys

import pytest

SECONDS = 1700


@pytest.mark.timeout(SECONDS)
def test_networks(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "benchmarks/network.py", "--rounds", "3", "--seconds", "2"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS
    )
    with capsys.disabled():
        print(done.stdout, flush=True)
    # The exit status 1 means a missed target.
    assert done.returncode in (0, 1)
