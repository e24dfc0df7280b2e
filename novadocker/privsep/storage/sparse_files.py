# SPDX-License-Identifier: Apache-2.0
"""Privileged: holes of sparse files, which layers of images have no word for.

A snapshot marks the files that have holes with an attribute. They arrive full of zeros, and are
sparse again once the engine has unpacked the snapshot.
"""

import os
import re
import stat
import subprocess
from collections.abc import Sequence

from novadocker import privsep
from novadocker.privsep import arguments

MARK = "trusted.novadocker.sparse"
"""The attribute of a file that has holes."""

_LAYER = re.compile(r"/(?:[\w.-]+/)+overlay2/[0-9a-z]{25,64}/diff")
# as long as it may take to read what a server wrote
_SECONDS = 3600
_BLOCK_BYTES = 512
# smaller holes are not worth the work
_SMALLEST_BYTES = 64 << 10
# to dig takes these from a file
_PRIVILEGED_MODES = stat.S_ISUID | stat.S_ISGID
_CAPABILITY = "security.capability"


def worth_a_mark(status: os.stat_result, attributes: frozenset[str]) -> bool:
    """Tell whether a file has holes that can be dug again.

    :param attributes: the names of its attributes
    """
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_blocks * _BLOCK_BYTES + _SMALLEST_BYTES <= status.st_size
        and not status.st_mode & _PRIVILEGED_MODES
        and _CAPABILITY not in attributes
    )


@privsep.transfer_pctxt.entrypoint
def dig(folders: Sequence[str]) -> None:
    """Make holes of the zeros of marked files in folders of layers, and take the marks away.

    A file keeps its content and its time. It keeps its mark, too, if its file system has no holes.

    :raises ValueError: an argument is not well-formed
    :raises OSError: a folder can't be read
    """
    layers = [_layer(folder) for folder in arguments.items(folders)]
    for layer in layers:
        for place, _, names in os.walk(layer):
            for name in names:
                _dig(f"{place}/{name}")


def _dig(path: str) -> None:
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode) or MARK not in os.listxattr(path):
        return
    # by util-linux: Python can't
    command = ["fallocate", "--dig-holes", path]
    done = subprocess.run(command, check=False, capture_output=True, timeout=_SECONDS)
    if done.returncode == 0:
        os.removexattr(path, MARK)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _layer(path: object) -> str:
    return arguments.without_detours(arguments.text(_LAYER, path))
