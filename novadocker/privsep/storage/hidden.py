# SPDX-License-Identifier: Apache-2.0
"""Privileged: the servers that the engine hides because it has another storage driver.

An engine lists only the containers of its own storage driver, and keeps the others' files. Its
storage driver changes with its configuration, and with the change to containerd's image store.
"""

import json
import os
import re
from contextlib import suppress
from pathlib import Path

from novadocker import engine_paths, naming, privsep
from novadocker.linux import openat
from novadocker.privsep import arguments

_TOP = Path()
_DRIVER = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_LARGEST_CONFIG = 4 << 20
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


@privsep.storage_pctxt.entrypoint
def hidden_servers(data_root: str, driver: str) -> dict[str, str]:
    """Return the storage driver of each server that the engine hides, by the instance's UUID.

    Leaves out containers whose metadata are damaged. Returns nothing if the data root does not
    exist, as with an engine on another host.

    :param driver: the engine's storage driver
    :raises ValueError: an argument is malformed
    :raises OSError: the data root cannot be read
    """
    current = arguments.text(_DRIVER, driver)
    found: dict[str, str] = {}
    with (
        suppress(FileNotFoundError, NotADirectoryError),
        openat.trusted(arguments.folder(data_root)) as root,
    ):
        for name in _list(root):
            with suppress(OSError, *_MALFORMED):
                uuid, former = _read(root, name)
                if former != current:
                    found[uuid] = former
    return found


def _list(root: int) -> list[str]:
    path = str(engine_paths.containers(_TOP))
    folder = openat.open_inside(root, path, os.O_RDONLY | os.O_DIRECTORY, mounts=True)
    try:
        return sorted(os.listdir(folder))
    finally:
        os.close(folder)


def _read(root: int, name: str) -> tuple[str, str]:
    """Return the UUID and the storage driver of a server.

    :raises ValueError: the container belongs to no server
    """
    path = str(engine_paths.container_config(_TOP, arguments.container_id(name)))
    descriptor = openat.open_inside(root, path, os.O_RDONLY, mounts=True)
    with os.fdopen(descriptor, "rb") as source:
        found = json.loads(source.read(_LARGEST_CONFIG))
    labels = found["Config"]["Labels"]
    if not naming.owned(str(found["Name"]).lstrip("/"), labels):
        raise ValueError(name)
    return str(labels[naming.LABEL_UUID]), arguments.text(_DRIVER, found["Driver"])
