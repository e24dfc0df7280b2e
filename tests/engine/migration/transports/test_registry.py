# SPDX-License-Identifier: Apache-2.0
"""A server's data through a registry: transferred data, leftovers in the registry, failures."""

import base64
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from nova import conf
from nova import exception as nova_exception

from novadocker import exception
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.images import store as images_store
from novadocker.virt.docker.migration import registry_client, transfer
from novadocker.virt.docker.migration.registry_client import Blob, Repository
from novadocker.virt.docker.migration.transports import choice
from novadocker.virt.docker.migration.transports.registry import repository
from tests import archives, slowness
from tests.engine import engines, moving, registries
from tests.engine.busybox import busybox_archive
from tests.engine.images.test_snapshot import Boot, Guest, base, boot, check, prepare
from tests.engine.images.test_store import folder, store
from tests.engine.moving import Arrive, Opened, arrive, data_root, guest, host, opened
from tests.engine.registries import Registry
from tests.fake_glance import FakeGlance

__all__ = ["arrive", "base", "boot", "data_root", "folder", "guest", "host", "opened", "store"]

DISK_MIB = 64
# Timeouts of a registry, for the tests without and with a registry that hangs.
PATIENCE_SECONDS = 30 * slowness.FACTOR
SHORT_PATIENCE_SECONDS = 2 * slowness.FACTOR
# shorter than a move, so each has several
TOKEN_SECONDS = 2

either_authentication = pytest.mark.parametrize(
    "registry", [0, TOKEN_SECONDS], ids=["passwords", "tokens"], indirect=True
)


@pytest.fixture
def registry(
    state_folder: Path, tmp_path: Path, monkeypatch: Any, request: pytest.FixtureRequest
) -> Iterator[Registry]:
    """Run the registry for the moves; the parameter is how many seconds it accepts a token."""
    folder = state_folder / f"registry-{tmp_path.name}"
    seconds = getattr(request, "param", 0)
    with registries.registry(folder, DISK_MIB, token_seconds=seconds) as found:
        monkeypatch.setattr(registry_client, "CERTIFICATES", found.certificates)
        options = {
            "transfer_registry": f"{found.address}/moves",
            "registry_credentials_file": str(found.credentials),
            "api_timeout": PATIENCE_SECONDS,
        }
        for name, value in options.items():
            conf.CONF.set_override(name, value, group="docker")
        yield found
        for name in options:
            conf.CONF.clear_override(name, group="docker")


@pytest.fixture
def other_engine(state_folder: Path, tmp_path: Path, host: list[str]) -> Iterator[Engine]:
    """Yield the engine of the destination host."""
    with engines.own_engine(state_folder / f"other-{tmp_path.name}", "overlay2") as other:
        conf.CONF.set_override("api_url", other.url, group="docker")
        yield Engine(other.url, timeout=30, load_timeout=60)


@either_authentication
def test_all_that_a_server_has_and_then_nothing_is_left(
    registry: Registry,
    docker_client: docker.APIClient,
    guest: Guest,
    opened: Opened,
    arrive: Arrive,
) -> None:
    prepare(guest)
    guest.run("echo before >/changed")
    with opened() as (session, move):
        session.send(live=True)
        guest.run("echo after >/changed")
        docker_client.kill(guest.id)
        docker_client.wait(guest.id)
        session.send(live=False)
        session.commit()
        assert len(registry.data()) == 2
    assert (registry.images(), registry.data()) == ([], [])
    found = arrive(move)
    check(found)
    assert found.run("cat /changed") == "after\n"


def test_of_an_image_travels_what_the_host_lacks(
    registry: Registry,
    engine: Engine,
    docker_client: docker.APIClient,
    guest: Guest,
    boot: Boot,
    store: images_store.ImageStore,
    fake_glance: FakeGlance,
    host: list[str],
    other_engine: Engine,
    new_instance_uuid: Callable[[], str],
) -> None:
    layers = [busybox_archive(), archives.tar_of([archives.entry("other", b"other\n")])]
    architecture = docker_client.version()["Arch"]
    config = archives.config(layers, config={"Cmd": ["sleep", "1d"]}, architecture=architecture)
    archive = archives.tar(archives.docker_files(config, layers))
    other = boot(store.ensure(None, fake_glance.add(str(uuid.uuid4()), archive)).id)
    served: list[int] = []
    names = set()
    for moved in (guest, other, other):
        image_id = engine.inspect_container(moved.id).image_id
        names.add(f"novadocker/moved:{image_id.removeprefix('sha256:')[:12]}")
        server = new_instance_uuid()
        storage = engine.inspect_storage(moved.id)
        carrier = choice.choose(engine, server)
        with transfer.session(host, "there", carrier, server, image_id, storage, ""):
            assert other_engine.inspect_image(image_id).id == image_id
        served.append(len(registry.served()) - sum(served))
        assert registry.images() == []
        assert engine.list_images(f"{registry.address}/moves/*") == {}
    # The engine fetches a configuration and two layers, then a configuration and the changed layer.
    assert served == [3, 2, 0]
    assert set(other_engine.list_images("novadocker/*")) == names


FAULTS: dict[str, tuple[Callable[[Registry], None], str]] = {
    "down": (Registry.stop, "Connection refused"),
    "full": (Registry.fill, "No space left on device"),
    "hangs": (Registry.freeze, "timed out"),
    "wrong certificate": (Registry.change_certificate, "certificate verify failed"),
}


@pytest.mark.parametrize("step", ["live", "final", "arrival"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_registry_that_fails(
    registry: Registry, guest: Guest, opened: Opened, monkeypatch: Any, step: str, fault: str
) -> None:
    """The other host keeps no data, and the server continues to run."""
    fail, words = FAULTS[fault]
    if (step, fault) == ("arrival", "full"):
        pytest.skip("what is fetched takes no room in the registry")
    guest.run("dd if=/dev/urandom of=/big bs=1M count=8")
    if fault == "hangs":
        conf.CONF.set_override("api_timeout", SHORT_PATIENCE_SECONDS, group="docker")
    if step == "arrival":
        _after_upload(monkeypatch, lambda _: fail(registry))

    def travel() -> None:
        with opened() as (session, _):
            if step == "live":
                fail(registry)
            session.send(live=True)
            fail(registry)
            session.send(live=False)

    with pytest.raises(nova_exception.NovaException, match=words):
        travel()
    assert guest.run("echo goes on") == "goes on\n"


def test_an_image_larger_than_the_root_disk_of_the_flavor(
    registry: Registry,
    guest: Guest,
    opened: Opened,
    other_engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(moving, "MOST", 1 << 20)
    with (
        pytest.raises(exception.ResizeRefused, match="flavor's root disk has only 1048576"),
        opened(),
    ):
        pass
    assert other_engine.list_images("*") == {}
    assert guest.run("echo goes on") == "goes on\n"


@pytest.mark.parametrize("fault", ["down", "hangs"])
def test_a_registry_that_fails_gets_no_image(
    registry: Registry, guest: Guest, opened: Opened, other_engine: Engine, fault: str
) -> None:
    fail, _ = FAULTS[fault]
    fail(registry)
    with (
        pytest.raises(nova_exception.NovaException, match="failed to connect to the registry"),
        opened(),
    ):
        pass
    assert other_engine.list_images("novadocker/*") == {}
    assert guest.run("echo goes on") == "goes on\n"


def test_a_registry_that_does_not_know_the_user(registry: Registry, opened: Opened) -> None:
    registry.credentials.write_text("{}")
    with (
        pytest.raises(exception.RegistryFailed, match="authentication required"),
        opened() as (session, _),
    ):
        session.send(live=True)


@pytest.mark.parametrize("registry", [TOKEN_SECONDS], indirect=True)
def test_a_token_that_ends_while_data_travels(registry: Registry, instance_uuid: str) -> None:
    moves = repository(instance_uuid)
    chunks = [os.urandom(1 << 20) for _ in range(4)]

    def slowly() -> Iterator[bytes]:
        for chunk in chunks:
            time.sleep(TOKEN_SECONDS * 0.4)
            yield chunk

    blob = moves.upload(slowly())
    assert blob.size == 4 << 20
    assert b"".join(moves.download(blob.digest)) == b"".join(chunks)
    moves.remove_blob(blob.digest)
    assert registry.tokens is not None
    actions = [set(scope.rpartition(":")[2].split(",")) for scope in registry.tokens.granted]
    # at the beginning of the upload and at its end; what is fetched needs no other
    assert actions == [{"pull", "push"}, {"pull", "push"}, {"delete"}]


@pytest.mark.parametrize("registry", [TOKEN_SECONDS], indirect=True)
def test_a_token_server_that_does_not_know_the_user(registry: Registry, instance_uuid: str) -> None:
    secret = base64.b64encode(b"mover:other").decode()
    registry.credentials.write_text(json.dumps({"auths": {registry.address: {"auth": secret}}}))
    with pytest.raises(exception.RegistryFailed, match=r"token server .* refuses the credentials"):
        repository(instance_uuid).upload([b"data"])


def test_a_registry_that_gives_other_data(
    registry: Registry, opened: Opened, monkeypatch: Any
) -> None:
    def spoil(digest: str) -> None:
        (blob,) = registry.disk.rglob(f"{digest.removeprefix('sha256:')}/data")
        # The last line is still well-formed.
        blob.write_bytes(blob.read_bytes()[:-2] + b" }\n")

    _after_upload(monkeypatch, spoil)
    with (
        pytest.raises(exception.ResizeRefused, match="other data than was asked for"),
        opened() as (session, _),
    ):
        session.send(live=True)


def test_what_a_move_left_that_was_cut_off(
    registry: Registry, engine: Engine, base: str, instance_uuid: str
) -> None:
    class Gone(Exception):
        pass

    class Cut:
        def ask(self, _order: object) -> None:
            raise Gone

    with pytest.raises(Gone):
        choice.choose(engine, instance_uuid).send_image(Cut(), base)  # type: ignore[arg-type]
    assert registry.images()
    choice.clear_leftovers(engine)
    assert registry.images() == []
    assert engine.list_images(f"{registry.address}/moves/*") == {}


def _after_upload(monkeypatch: Any, follow: Callable[[str], None]) -> None:
    upload = Repository.upload

    def call(*arguments: Any) -> Blob:
        blob = upload(*arguments)
        follow(blob.digest)
        return blob

    monkeypatch.setattr(Repository, "upload", call)
