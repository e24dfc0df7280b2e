# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys


def test_it_starts_without_novas_objects() -> None:
    """Their import takes seconds during a server's downtime, and only nova-compute needs them."""
    code = "import novadocker.cmd.receive, nova.objects; print(hasattr(nova.objects, 'Instance'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr
