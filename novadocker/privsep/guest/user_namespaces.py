# SPDX-License-Identifier: Apache-2.0
"""Privileged: a trial of what servers with a user namespace of their own need."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from oslo_log import log as logging

from novadocker import privsep
from novadocker.linux import openat
from novadocker.privsep import arguments

LOG = logging.getLogger(__name__)

_SECONDS = 20
# A trial that is not killed ends long before.
_OLD_SECONDS = 10 * _SECONDS
_PREFIX = ".novadocker-"
_FOLDER = re.compile(re.escape(_PREFIX) + "[a-z0-9_]{8}")
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
    :raises OSError: the trial failed, for example because the disk is full
    """
    path = arguments.folder(data_root)
    with openat.trusted(path):
        _remove_left(path)
        folder = tempfile.mkdtemp(prefix=_PREFIX, dir=path)
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
    except subprocess.TimeoutExpired as error:
        raise OSError(f"the trial took longer than {_SECONDS} seconds") from error
    finally:
        _remove(folder)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise OSError(f"the trial failed: {lines[-1]}")
    return done.stdout.strip()


def _remove_left(data_root: str) -> None:
    """Remove the directories of trials that were killed."""
    for entry in os.scandir(data_root):
        if _FOLDER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            status = entry.stat(follow_symlinks=False)
            age = time.time() - status.st_mtime
            if status.st_uid == os.geteuid() and age > _OLD_SECONDS:
                _remove(entry.path)


def _remove(folder: str) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        LOG.warning("Failed to remove %s of a trial of user namespaces: %s", folder, error)
