# SPDX-License-Identifier: Apache-2.0
"""The directory of the containers' files."""

from dataclasses import replace
from pathlib import Path

import pytest

from novadocker.virt.docker.host import filesystem
from tests.unit import fakes

SOCKET = "/run/containerd/containerd.sock"
OWN_SOCKET = "/var/run/docker/containerd/containerd.sock"


@pytest.mark.parametrize(
    ("store", "address", "exists", "config", "expected"),
    [
        (False, SOCKET, True, 'root = "/srv/c"', "/data"),
        (True, SOCKET, True, 'root = "/srv/c"', "/srv/c"),
        (True, SOCKET, True, "version = 2", "/var/lib/containerd"),
        (True, SOCKET, True, "[[[", "/var/lib/containerd"),
        (True, SOCKET, True, None, "/var/lib/containerd"),
        (True, OWN_SOCKET, True, 'root = "/srv/c"', "/data"),
        # Engine 26
        (True, "", True, None, "/var/lib/containerd"),
        (True, "", False, None, "/data"),
    ],
)
def test_the_directory_of_the_containers_files(
    tmp_path: Path, store: bool, address: str, exists: bool, config: str | None, expected: str
) -> None:
    info = replace(
        fakes.INFO, data_root="/data", containerd_store=store, containerd_address=address
    )
    written, socket = tmp_path / "config.toml", tmp_path / "socket"
    if config is not None:
        written.write_text(config)
    if exists:
        socket.touch()
    assert filesystem.layers_root(info, written, str(socket)) == expected
