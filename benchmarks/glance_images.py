# SPDX-License-Identifier: Apache-2.0
"""Large images, in files and in Glance."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from openstack.connection import Connection

from devcloud.archive import build_archive
from devcloud.images import COMMANDS, make_busybox_root

GLANCE_SECONDS = 600
"""Timeout of Glance for one image."""

_FILE_MIB = 8


def build(folder: Path, size: int) -> Path:
    """Build an archive of busybox and ``size`` MiB of random content."""
    root, target = folder / "root", folder / "image.tar"
    root.mkdir()
    make_busybox_root(root)
    (root / "data").mkdir()
    for number in range(size // _FILE_MIB):
        (root / "data" / str(number)).write_bytes(os.urandom(_FILE_MIB << 20))
    build_archive(root, target, command=COMMANDS["busybox"])
    return target


@contextlib.contextmanager
def uploaded(demo: Connection, name: str, archive: Path, **properties: str) -> Iterator[str]:
    """Upload an image to Glance and yield its id; delete it when the block ends."""
    made = demo.image.create_image(
        name,
        filename=str(archive),
        container_format="docker",
        disk_format="raw",
        allow_duplicates=True,
        wait=True,
        timeout=GLANCE_SECONDS,
        **properties,
    )
    try:
        yield made.id
    finally:
        demo.image.delete_image(made)
