# SPDX-License-Identifier: Apache-2.0
"""Backups of running servers in a registry, and servers created from them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from nova import conf

from novadocker import exception, naming
from novadocker.virt.docker.containers.servers import ServerList
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.migration import backup
from novadocker.virt.docker.migration.backup import Backups
from tests.engine.images.test_snapshot import Guest, base, boot, check, prepare
from tests.engine.images.test_store import folder, store
from tests.engine.migration.transports.test_registry import (
    FAULTS,
    SHORT_PATIENCE_SECONDS,
    either_authentication,
    registry,
)
from tests.engine.moving import Arrive, arrive, data_root, guest
from tests.engine.registries import Registry

__all__ = ["arrive", "base", "boot", "data_root", "folder", "guest", "registry", "store"]


@pytest.fixture
def server(docker_client: docker.APIClient, guest: Guest, instance_uuid: str) -> str:
    """Return the server that is copied."""
    docker_client.rename(guest.id, naming.container_name(instance_uuid))
    return instance_uuid


@pytest.fixture
def taken(engine: Engine, registry: Registry, tmp_path: Path) -> Iterator[Backups]:
    conf.CONF.set_override("copy_interval", 60, group="docker")
    conf.CONF.set_override("instances_path", str(tmp_path))
    yield Backups(engine, ServerList(engine), tmp_path / "marks")
    conf.CONF.clear_override("copy_interval", group="docker")
    conf.CONF.clear_override("instances_path")


@either_authentication
def test_a_server_is_made_of_its_last_copy(
    taken: Backups,
    registry: Registry,
    engine: Engine,
    docker_client: docker.APIClient,
    guest: Guest,
    server: str,
    arrive: Arrive,
    data_root: Path,
) -> None:
    prepare(guest)
    guest.run("echo first >/written")
    taken.create(server)
    repository = backup._repository(server)
    first = repository.find_image(backup.TAG)
    assert first is not None
    guest.run("echo second >/written")
    # The second copy has no changes to send.
    for _ in range(2):
        taken.create(server)
    now = repository.find_image(backup.TAG)
    assert now is not None
    # The registry has no blob of the previous copy any more.
    there = {f"sha256:{path.rpartition('/')[2]}" for path in registry.data()}
    assert there & {*first.blobs, *now.blobs} == set(now.blobs)
    assert docker_client.inspect_container(guest.id)["State"]["Status"] == "running"
    assert engine.list_images(f"{registry.address}/moves/*/*") == {}
    guest.run("echo lost >/written")
    docker_client.kill(guest.id)
    move = taken.fetch(server, str(data_root))
    assert move is not None
    found = arrive(move)
    check(found)
    assert found.run("cat /written") == "second\n"
    taken.remove(server)
    assert registry.images() == []
    assert taken.fetch(server, str(data_root)) is None


def test_a_copy_that_fails_leaves_the_one_before(
    taken: Backups, registry: Registry, guest: Guest, server: str, monkeypatch: Any, data_root: Path
) -> None:
    taken.create(server)
    before = registry.images()
    guest.run("dd if=/dev/urandom of=/big bs=1M count=8")
    registry.fill()
    with pytest.raises(exception.RegistryFailed, match="No space left"):
        taken.create(server)
    assert registry.images() == before
    assert guest.run("echo goes on") == "goes on\n"


@pytest.mark.parametrize("moment", ["before", "during"])
def test_a_server_that_starts_while_it_is_copied(
    taken: Backups,
    docker_client: docker.APIClient,
    guest: Guest,
    server: str,
    monkeypatch: Any,
    moment: str,
) -> None:
    """It is frozen if it starts before the last stream; a start during the stream is a failure."""
    upload, states = backup._upload, []
    docker_client.kill(guest.id)
    docker_client.wait(guest.id)

    def starting(*arguments: Any, live: bool) -> Any:
        if live == (moment == "before"):
            docker_client.start(guest.id)
        states.append(docker_client.inspect_container(guest.id)["State"]["Status"])
        return upload(*arguments, live=live)

    monkeypatch.setattr(backup, "_upload", starting)
    if moment == "before":
        taken.create(server)
        assert states == ["running", "paused"]
    else:
        with pytest.raises(exception.RanMeanwhile):
            taken.create(server)
        assert backup._repository(server).find_image(backup.TAG) is None
    assert docker_client.inspect_container(guest.id)["State"]["Status"] == "running"


def test_nothing_is_staged_of_a_copy_that_is_damaged(
    taken: Backups, registry: Registry, server: str, data_root: Path
) -> None:
    taken.create(server)
    for blob in registry.disk.rglob("data"):
        if blob.read_bytes().endswith(b"}\n"):
            blob.write_bytes(blob.read_bytes()[:-2] + b" }\n")
    with pytest.raises(exception.RegistryFailed, match="other data"):
        taken.fetch(server, str(data_root))


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "full"])
def test_a_copy_that_can_not_be_fetched_is_not_taken_for_none(
    taken: Backups, registry: Registry, server: str, data_root: Path, fault: str
) -> None:
    """Otherwise the server would be rebuilt from its image and lose its data."""
    fail, words = FAULTS[fault]
    taken.create(server)
    conf.CONF.set_override("api_timeout", SHORT_PATIENCE_SECONDS, group="docker")
    fail(registry)
    with pytest.raises(exception.RegistryFailed, match=words):
        taken.fetch(server, str(data_root))


def test_when_a_copy_is_due(taken: Backups, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "marks").mkdir()
    mark = tmp_path / "marks/uuid"
    assert taken._is_due("uuid")
    mark.touch()
    now = mark.stat().st_mtime
    for passed, due in ((60, False), (3599, False), (3601, True), (-10, True)):
        monkeypatch.setattr(backup.time, "time", lambda passed=passed: now + passed)
        assert taken._is_due("uuid") is due
