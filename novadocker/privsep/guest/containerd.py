# SPDX-License-Identifier: Apache-2.0
"""A privileged function that ends the shim of a container that has no processes.

A container's task in containerd exists as long as its shim. If Docker Engine 20.10 is killed while
the container's processes end, it can lose track of the task, and can't start the container then.
"""

import contextlib
import itertools
import os

import psutil

from novadocker import privsep
from novadocker.privsep import arguments

_PROGRAM = "containerd-shim"
_SECONDS = 10


@privsep.interior_pctxt.entrypoint
def end_shim(container_id: str) -> bool:
    """Kill a container's shim if it has no child processes. Idempotent.

    :returns: True if a shim was killed
    :raises ValueError: the argument is malformed
    :raises psutil.TimeoutExpired: the shim does not end within 10 seconds
    """
    container = arguments.container_id(container_id)
    ended = False
    for process in psutil.process_iter(["cmdline"]):
        # A process that ends during the loop needs no signal.
        with contextlib.suppress(psutil.NoSuchProcess):
            if is_shim(process.info["cmdline"] or [], container) and not process.children():
                process.kill()
                process.wait(_SECONDS)
                ended = True
    return ended


def is_shim(command: list[str], container: str) -> bool:
    """Return True if a command line is that of a container's shim."""
    program = os.path.basename(command[0]) if command else ""
    named = ("-id", container) in itertools.pairwise(command)
    return program.startswith(_PROGRAM) and named
