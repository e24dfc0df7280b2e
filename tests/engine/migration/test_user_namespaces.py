# SPDX-License-Identifier: Apache-2.0
"""Moves and snapshots of a server between user namespaces with different ids and without one."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import docker
import pytest

from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.images import store as images_store
from novadocker.virt.docker.migration import transfer
from tests.engine.images.test_snapshot import Guest, base, boot, folder, store
from tests.engine.moving import Opened, data_root, host, opened
from tests.fake_glance import FakeGlance

__all__ = ["base", "boot", "data_root", "folder", "host", "opened", "store"]

FIRST = 1_900_085_248
SIZE = 65536
OWNERS = "stat -c '%n %u:%g' /mine /data/mine /folder /"
EXPECTED = "/mine 5:1000\n/data/mine 1000:5\n/folder 0:0\n/ 0:0\n"

Start = Callable[[str, str, int], Guest]


def root_of(guest: Guest) -> int:
    """Return the host's id of a guest's root, as the kernel shows it."""
    return int(Path(guest.root.parent, "uid_map").read_text().split()[1])


@pytest.fixture
def start(
    docker_client: docker.APIClient, data_root: Path, store: images_store.ImageStore
) -> Iterator[Start]:
    """Yield a function that starts a container of an image, with or without ids of its own.

    Deletes the containers before ``store`` deletes their images.
    """
    with ExitStack() as left:

        def make(image: str, instance_uuid: str, first: int) -> Guest:
            left.callback(runtime.delete_namespace, instance_uuid)
            if first:
                runtime.create_own_namespace(instance_uuid, first, SIZE)
            else:
                namespace.wire_nics(instance_uuid, [])
            settings = docker_client.create_host_config(network_mode="none", runtime="novadocker")
            made = docker_client.create_container(image, host_config=settings)["Id"]
            left.callback(docker_client.remove_container, made, force=True, v=True)
            runtime.bind_container(made, instance_uuid)
            guest = Guest.started(docker_client, made)
            assert root_of(guest) == first
            return guest

        yield make


@pytest.fixture
def first(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture
def guest(start: Start, base: str, instance_uuid: str, first: int) -> Guest:
    """Return the server that moves."""
    return start(base, instance_uuid, first)


@pytest.mark.parametrize(
    ("first", "there"),
    [(FIRST, 0), (0, FIRST), (FIRST, FIRST + SIZE)],
    indirect=["first"],
    ids=["to a host without", "from a host without", "to other ids"],
)
def test_a_move(
    docker_client: docker.APIClient,
    engine: Engine,
    guest: Guest,
    opened: Opened,
    start: Start,
    base: str,
    data_root: Path,
    instance_uuid: str,
    new_instance_uuid: Callable[[], str],
    there: int,
) -> None:
    guest.run("touch /mine /data/mine; chown 5:1000 /mine; chown 1000:5 /data/mine; rm /gone")
    with opened() as (session, move):
        session.send(live=True)
        guest.run("touch /later; chown 1000 /later; mv /folder/below /folder/renamed")
        docker_client.kill(guest.id)
        docker_client.wait(guest.id)
        session.send(live=False)
        session.commit()
    arrived = start(base, new_instance_uuid(), there)
    docker_client.kill(arrived.id)
    docker_client.wait(arrived.id)
    storage = engine.inspect_storage(arrived.id)
    transfer.adopt(str(data_root), instance_uuid, move, storage, resumed=False)
    transfer.discard(str(data_root), instance_uuid)
    found = Guest.started(docker_client, arrived.id)
    assert root_of(found) == there
    assert found.run(OWNERS) == EXPECTED
    assert found.run("stat -c %u /later; ls /folder; test -e /gone || echo gone") == (
        "1000\nrenamed\ngone\n"
    )


@pytest.mark.parametrize("first", [FIRST], indirect=True)
def test_a_snapshot_boots_without_a_user_namespace(
    docker_client: docker.APIClient,
    engine: Engine,
    store: images_store.ImageStore,
    fake_glance: FakeGlance,
    guest: Guest,
    start: Start,
    new_instance_uuid: Callable[[], str],
) -> None:
    guest.run("touch /mine /data/mine; chown 5:1000 /mine; chown 1000:5 /data/mine")
    image_id = new_instance_uuid()
    with store.snapshot(engine.inspect_container(guest.id)) as image:
        store.upload(None, image_id, image)
    copy = start(store.ensure(None, fake_glance.meta(image_id)).id, new_instance_uuid(), 0)
    assert copy.run(OWNERS) == EXPECTED
