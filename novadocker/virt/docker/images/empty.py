# SPDX-License-Identifier: Apache-2.0
"""An image without files, for servers whose root directory is the file system of a volume."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator

from novadocker.virt.docker.images.archive import ArchivedImage, Layer
from novadocker.virt.docker.images.platforms import Platform
from novadocker.virt.docker.images.regions import Region

ID = "00000000-0000-0000-0000-000000000000"
"""The image's id among those of Glance."""

TAG = "empty"

# The end of a tar archive (tar(5)).
_NO_FILES = bytes(1024)


@contextlib.contextmanager
def image(platform: Platform) -> Iterator[ArchivedImage]:
    """Yield the image. Its command is that of a host, which ``os_command_line`` replaces."""
    with tempfile.TemporaryFile() as file:
        file.write(_NO_FILES)
        file.flush()
        content = Region(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        layer = Layer(content.digest(), content)
        config = {
            "architecture": platform.architecture,
            "os": "linux",
            "config": {"Cmd": ["/sbin/init"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.digest}"]},
            "history": [{"created_by": "root file system of a volume"}],
        }
        yield ArchivedImage(json.dumps(config).encode(), (layer,))
