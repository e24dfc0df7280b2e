# SPDX-License-Identifier: Apache-2.0
"""Privileged: a trial of what servers with a user namespace of their own need."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from novadocker import privsep
from novadocker.linux import openat
from novadocker.privsep import arguments

_SECONDS = 20
_PROGRAM = """import sys
sys.path.append(sys.argv.pop(1))
from novadocker.runtime.probe import main
main()"""


# overlayfs makes a directory that root can read only with CAP_DAC_OVERRIDE, which this context has.
@privsep.storage_pctxt.entrypoint
def why_impossible(data_root: str) -> str:
    """Return why servers of this host cannot have own user namespaces; empty if they can.

    :param data_root: the engine's data root
    :raises ValueError: the argument is malformed
    """
    path = arguments.folder(data_root)
    with openat.trusted(path):
        folder = tempfile.mkdtemp(prefix=".novadocker-", dir=path)
    # The mount namespace of the trial must not be this process's.
    home = str(Path(__file__).parents[3])
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, home, folder],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["the trial failed"])[-1]
        return done.stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the trial failed: {error}"
    finally:
        shutil.rmtree(folder)
