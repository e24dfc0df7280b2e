# SPDX-License-Identifier: Apache-2.0
"""Privileged: the owners of an image's files."""

import os
import re
import stat
from collections.abc import Sequence
from contextlib import ExitStack

from novadocker import engine_paths, privsep
from novadocker.linux import openat, walk
from novadocker.privsep import arguments
from novadocker.privsep.storage import callers

_LAYER = re.compile(engine_paths.LAYER_PATH)
_OPAQUE = "trusted.overlay.opaque"


@privsep.storage_pctxt.entrypoint
def find_above(folders: Sequence[str], most: int) -> tuple[str, int] | None:
    """Return a file of an image whose user or group has a higher id, and that id; None without any.

    :param folders: directories of the image's layers of the storage driver overlay2, from the
        highest
    :param most: highest id that a file may have
    :raises ValueError: an argument is malformed
    :raises PermissionError: users other than root can change the path of a directory
    :raises OSError: a directory cannot be read
    """
    paths = [
        arguments.without_detours(arguments.text(_LAYER, path)) for path in arguments.items(folders)
    ]
    bound = arguments.id_number(most)
    with ExitStack() as opened:
        above: list[int] = []
        for path in paths:
            top = opened.enter_context(callers.opened(path))
            for found in walk.Walk(top):
                assert found.status
                owner = max(found.status.st_uid, found.status.st_gid)
                if owner > bound and not (
                    _is_whiteout(found.status) or any(_hides(layer, found.path) for layer in above)
                ):
                    return os.fsencode(found.path).decode(errors="backslashreplace"), owner
            above.append(top)
    return None


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _hides(layer: int, path: str) -> bool:
    """Return True if a layer has the path, or deletes or replaces a directory on the way to it.

    A directory that a layer deletes and creates anew is opaque: it shows nothing of lower layers.

    :param layer: descriptor of the layer's directory
    """
    end = -1
    while (end := path.find("/", end + 1)) >= 0:
        try:
            with openat.held(layer, path[:end]) as found:
                is_folder = stat.S_ISDIR(found.status.st_mode)
                if not is_folder or found.attributes().get(_OPAQUE) == b"y":
                    return True
        except FileNotFoundError:
            return False
    return not path or _exists(layer, path)


def _exists(layer: int, path: str) -> bool:
    try:
        with openat.held(layer, path):
            return True
    except FileNotFoundError:
        return False
