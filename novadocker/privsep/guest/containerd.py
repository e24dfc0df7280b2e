# SPDX-License-Identifier: Apache-2.0
"""Ends what containerd keeps of a container that has no processes any more.

A container's task in containerd lives as long as its shim. Docker Engine 20.10 can lose sight of
one when it is killed while the container's processes end, and can't start the container then.
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
    """End a container's shim; return whether there was one. One with processes is left alone.

    :raises ValueError: the argument is not well-formed
    :raises psutil.TimeoutExpired: it does not end
    """
    container = arguments.container_id(container_id)
    ended = False
    for process in psutil.process_iter(["cmdline"]):
        # one that ends meanwhile needs nobody
        with contextlib.suppress(psutil.NoSuchProcess):
            if _is_shim(process.info["cmdline"] or [], container) and not process.children():
                process.kill()
                process.wait(_SECONDS)
                ended = True
    return ended


def _is_shim(words: list[str], container: str) -> bool:
    program = os.path.basename(words[0]) if words else ""
    named = ("-id", container) in itertools.pairwise(words)
    return program.startswith(_PROGRAM) and named
