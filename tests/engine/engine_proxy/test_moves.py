# SPDX-License-Identifier: Apache-2.0
"""The end of a move as a user that can reach the engine only through the proxy."""

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from nova import conf

from novadocker.privsep.storage import staging
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.images import announced
from novadocker.virt.docker.migration import receiver, transfer
from novadocker.virt.docker.migration.transports import choice
from tests.engine import engines, moving
from tests.engine.engine_proxy.test_lifecycle import NOVA, become_nova, processes, proxy_of
from tests.engine.engines import OwnEngine
from tests.engine.images.test_snapshot import Guest, base, boot
from tests.engine.images.test_store import folder, store
from tests.engine.moving import guest

__all__ = ["base", "boot", "folder", "guest", "store"]

_SECONDS = 120


@pytest.fixture
def reachable() -> Iterator[Path]:
    """Yield a directory that nova-compute's user can read, unlike the session's."""
    found = Path(tempfile.mkdtemp(prefix="novadocker-proxied-"))
    found.chmod(0o755)
    yield found
    shutil.rmtree(found)


def receive(listener: socket.socket, url: str, engine_url: str, instances: Path) -> None:
    """Receive a server as ``novadocker-receive`` does."""
    conf.CONF([], project="nova", default_config_files=[])
    become_nova()
    with socket.socket(socket.AF_UNIX) as direct, pytest.raises(PermissionError):
        direct.connect(engine_url.removeprefix("unix://"))
    conf.CONF.set_override("instances_path", str(instances))
    engine = Engine(url, timeout=30, load_timeout=60)
    link, _ = listener.accept()
    with (
        link,
        link.makefile("rb", buffering=0) as source,
        link.makefile("wb", buffering=0) as answers,
    ):
        load = partial(announced.load, engine)
        kept = receiver.serve(engine, load, lambda _: 64 << 20, source, answers)
    os._exit(0 if kept else 1)


def test_a_server_arrives(
    reachable: Path, state_folder: Path, session_engine: OwnEngine, instance_uuid: str, guest: Guest
) -> None:
    """The destination, its image and all, is another engine, whose socket nobody but root has."""
    guest.run("echo moved >/moved; echo mine >/data/mine")
    engine = Engine(session_engine.url, timeout=30, load_timeout=60)
    image = engine.inspect_container(guest.id).image_id
    (reachable / "instances").mkdir()
    os.chown(reachable / "instances", NOVA, NOVA)
    state_folder.chmod(0o711)
    with (
        engines.own_engine(state_folder / "proxied", "overlay2") as other,
        proxy_of(other, reachable / "proxy") as url,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(str(reachable / "link"))
        listener.listen()
        command = [sys.executable, "-c", moving.RELAY, str(reachable / "link")]
        child = processes.Process(
            target=receive, args=(listener, url, other.url, reachable / "instances")
        )
        child.start()
        try:
            with transfer.session(
                command,
                "there",
                choice.choose(engine, instance_uuid),
                instance_uuid,
                image,
                engine.inspect_storage(guest.id),
                "",
            ) as (session, move):
                session.send(live=True)
                session.send(live=False)
                session.commit()
            child.join(_SECONDS)
            assert child.exitcode == 0
            staged = other.data_root / staging.FOLDER / f"{instance_uuid}.{move.token}"
            assert (staged / "0/moved").read_text() == "moved\n"
            assert [
                (staged / f"{number}/mine").read_text()
                for number, path in enumerate(move.volumes, 1)
                if path == "/data"
            ] == ["mine\n"]
            there = Engine(other.url, timeout=30, load_timeout=60)
            assert there.inspect_image(move.image_id).id == image
        finally:
            child.kill()
            child.join()
            transfer.discard(str(other.data_root), instance_uuid)
    state_folder.chmod(0o700)
