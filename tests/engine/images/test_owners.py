# SPDX-License-Identifier: Apache-2.0
"""The owners of an image's files, in the layers of a real engine."""

import contextlib
import io
import tarfile

import docker
import pytest

from novadocker.privsep.storage import owners
from novadocker.virt.docker.engine.client import Engine
from tests.engine.busybox import busybox_archive

HIGH = 70_000


def archive(**files: int) -> bytes:
    """Return a root directory with files of these users."""
    buffer = io.BytesIO(busybox_archive())
    with tarfile.open(fileobj=buffer, mode="a") as root:
        for path, owner in files.items():
            entry = tarfile.TarInfo(path.replace("_", "/"))
            entry.uid = entry.gid = owner
            root.addfile(entry)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("touch /new", ("srv/file", HIGH)),
        ("chown -R 5:5 /srv", None),
        ("rm /srv/file", None),
        ("rm -r /srv", None),
        ("rm -r /srv; ln -s bin /srv", None),
        ("rm -r /srv; mkdir /srv", None),
        ("touch /srv/other", ("srv/file", HIGH)),
        ("chown 5:5 /srv/file; chown :70001 /srv", ("srv", 70_001)),
        ("chown -h 65535:65535 /srv/file", None),
    ],
)
def test_what_a_server_sees_counts(
    engine: Engine, docker_client: docker.APIClient, change: str, found: tuple[str, int] | None
) -> None:
    with contextlib.ExitStack() as undo:
        docker_client.import_image_from_data(archive(srv_file=HIGH), "owned", "test")
        undo.callback(docker_client.remove_image, "owned:test")
        command = ["sh", "-c", f"mkdir -p /srv; {change}"]
        made = docker_client.create_container("owned:test", command)
        undo.callback(docker_client.remove_container, made, force=True)
        docker_client.start(made)
        assert docker_client.wait(made)["StatusCode"] == 0
        docker_client.commit(made, "changed", "test")
        undo.callback(docker_client.remove_image, "changed:test")
        layers = engine.inspect_image("changed:test").layers
        assert len(layers) == 2
        assert owners.find_above(layers, 65535) == found
