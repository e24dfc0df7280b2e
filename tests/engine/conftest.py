# SPDX-License-Identifier: Apache-2.0
"""A private Docker engine and a private Open vSwitch for the tests that need the real thing.

The whole session runs in a network namespace of its own, so that neither the machine's network nor
another Open vSwitch is touched. Only names outside it, network namespaces and runtime records,
are shared with the machine: tests take their instance UUIDs from ``instance_uuid``, which marks
them.
"""

# first: Nova patches (or forbids) eventlet before anything can import it
from nova import monkey_patch

try:
    monkey_patch.patch(backend="threading")
except TypeError:  # Nova 31 and 32 know eventlet only
    monkey_patch.patch()

import io
import json
import os
import socket
import subprocess
import tarfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from tests.engine import daemons

SHIM = Path(__file__).parents[2] / "novadocker" / "runtime" / "novadocker-runtime"
# every instance of these tests has a UUID that starts with this
UUID_MARK = "7e57e57e"


@pytest.fixture(scope="session")
def state_folder() -> Iterator[Path]:
    """The folder of everything that the session's daemons keep."""
    folder, lock = daemons.make_state_folder()
    yield folder
    daemons.clear(folder)
    lock.close()


@pytest.fixture(scope="session")
def engine_url(state_folder: Path) -> Iterator[str]:
    """A Docker engine with nothing in it, the runtime shim registered."""
    folder = state_folder / "docker"
    folder.mkdir()
    config = {
        "data-root": str(folder / "data"),
        "exec-root": str(folder / "exec"),
        "pidfile": str(folder / "docker.pid"),
        "hosts": [f"unix://{folder}/docker.sock"],
        "group": "root",
        "runtimes": {"novadocker": {"path": str(SHIM)}},
        "live-restore": True,
        "iptables": False,
        "bridge": "none",
        "userland-proxy": False,
    }
    (folder / "daemon.json").write_text(json.dumps(config))
    url = config["hosts"][0]

    def ready() -> bool:
        return (folder / "docker.sock").exists() and _accepts(folder / "docker.sock")

    process = daemons.start(
        ["dockerd", "--config-file", str(folder / "daemon.json")], folder / "log", ready
    )
    yield url
    _remove_containers(url)
    daemons.stop(process)


@pytest.fixture
def docker_client(engine_url: str) -> Iterator[docker.APIClient]:
    """The engine's REST API; containers that a test leaves are removed after it."""
    client = docker.APIClient(base_url=engine_url, timeout=60)
    yield client
    client.close()
    _remove_containers(engine_url)


@pytest.fixture(scope="session")
def busybox_image(engine_url: str) -> str:
    """The name of an image with busybox and all its commands, built offline."""
    client = docker.APIClient(base_url=engine_url, timeout=60)
    client.import_image_from_data(
        busybox_archive(), repository="busybox", tag="test", changes=['CMD ["sleep", "1d"]']
    )
    client.close()
    return "busybox:test"


def busybox_archive() -> bytes:
    """Return a root filesystem, as a tar archive, made from the machine's static busybox."""
    commands = subprocess.run(
        ["/bin/busybox", "--list"], check=True, capture_output=True, text=True
    ).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder in ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "var"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        archive.add("/bin/busybox", "bin/busybox")
        for command in commands:
            if command != "busybox":
                entry = tarfile.TarInfo(f"bin/{command}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(entry)
    return buffer.getvalue()


@pytest.fixture
def new_instance_uuid() -> Callable[[], str]:
    """Make UUIDs of instances that the leak check knows as ours."""
    return lambda: UUID_MARK + str(uuid.uuid4())[len(UUID_MARK) :]


@pytest.fixture
def instance_uuid(new_instance_uuid: Callable[[], str]) -> str:
    return new_instance_uuid()


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(os.fspath(path)) == 0


def _remove_containers(url: str) -> None:
    client = docker.APIClient(base_url=url, timeout=60)
    for container in client.containers(all=True):
        client.remove_container(container["Id"], force=True, v=True)
    client.close()
