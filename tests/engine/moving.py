# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the move tests: a host that receives servers, and a server that moves."""

import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path

import docker
import pytest
from nova import conf

from novadocker.privsep.storage import staging
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.images import announced
from novadocker.virt.docker.migration import receiver, transfer
from novadocker.virt.docker.migration.disk_info import Move
from novadocker.virt.docker.migration.transports import choice
from tests.engine.images.test_snapshot import Boot, Guest

# A replacement for ssh between two hosts.
RELAY = """
import socket, sys, threading, os
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
def back():
    while data := link.recv(65536):
        os.write(1, data)
thread = threading.Thread(target=back)
thread.start()
try:
    while data := os.read(0, 65536):
        link.sendall(data)
    link.shutdown(socket.SHUT_WR)
except BrokenPipeError:
    # The other side has ended its output.
    pass
"""

MOST = 512 << 20
"""Bytes of the root disk of the servers' flavor."""

Opened = Callable[..., AbstractContextManager[tuple[transfer.Session, Move]]]
"""The type of the fixture ``opened``."""

Arrive = Callable[[Move], Guest]
"""The type of the fixture ``arrive``."""


@pytest.fixture
def host(tmp_path: Path, engine_url: str, data_root: Path) -> Iterator[list[str]]:
    """Run a host that receives servers; yield the command that connects to it."""
    path = tmp_path / "socket"
    conf.CONF.set_override("api_url", engine_url, group="docker")
    (tmp_path / "instances").mkdir(exist_ok=True)
    conf.CONF.set_override("instances_path", str(tmp_path / "instances"))
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    link, _ = listener.accept()
                except OSError:
                    return
                with (
                    link,
                    link.makefile("rb", buffering=0) as source,
                    link.makefile("wb", buffering=0) as answers,
                ):
                    destination = Engine(conf.CONF.docker.api_url, timeout=30, load_timeout=60)
                    load = partial(announced.load, destination)
                    receiver.serve(destination, load, lambda _: MOST, source, answers)

        thread = threading.Thread(target=serve)
        thread.start()
        yield [sys.executable, "-c", RELAY, str(path)]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(30)
    conf.CONF.clear_override("api_url", group="docker")
    conf.CONF.clear_override("instances_path")


@pytest.fixture
def data_root(engine: Engine) -> Iterator[Path]:
    """Yield the engine's data root; check that it contains no staged data after the test."""
    root = Path(engine.info().data_root)
    yield root
    assert not (root / staging.FOLDER).exists()


@pytest.fixture
def guest(base: str, boot: Boot) -> Guest:
    """Return the server that moves."""
    return boot(base)


@pytest.fixture
def opened(engine: Engine, guest: Guest, host: list[str], instance_uuid: str) -> Opened:
    """Return a function that begins the move, optionally with another command than the host's."""

    def begin(
        command: Sequence[str] = host,
    ) -> AbstractContextManager[tuple[transfer.Session, Move]]:
        return transfer.session(
            command,
            "there",
            choice.choose(engine, instance_uuid),
            instance_uuid,
            engine.inspect_container(guest.id).image_id,
            engine.inspect_storage(guest.id),
            "",
        )

    return begin


@pytest.fixture
def arrive(
    docker_client: docker.APIClient, engine: Engine, base: str, data_root: Path, instance_uuid: str
) -> Iterator[Arrive]:
    """Yield a function that creates and starts a container of the received data."""
    made: list[str] = []

    def call(move: Move) -> Guest:
        network = docker_client.create_host_config(network_mode="none")
        made.append(docker_client.create_container(base, host_config=network)["Id"])
        storage = engine.inspect_storage(made[-1])
        transfer.adopt(str(data_root), instance_uuid, move, storage, resumed=False)
        transfer.discard(str(data_root), instance_uuid)
        return Guest.started(docker_client, made[-1])

    yield call
    for container in made:
        docker_client.remove_container(container, force=True, v=True)
