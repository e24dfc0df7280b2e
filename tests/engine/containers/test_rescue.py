# SPDX-License-Identifier: Apache-2.0
"""Rescues on a real engine: one container repairs the files of another."""

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from novadocker import naming
from novadocker.privsep.storage import overlay_names
from novadocker.virt.docker.containers import rescue
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.limits import isolation
from novadocker.virt.docker.model import ContainerSpec, Isolation
from tests import archives
from tests.engine import machines
from tests.engine.busybox import busybox_archive
from tests.engine.engines import own_engine

# The engine's own limit of layers.
LAYERS = 125

SERVER = str(uuid.uuid4())
NAME = naming.container_name(SERVER)


@pytest.fixture
def container(docker_client: docker.APIClient) -> ContainerSpec:
    return describe(docker_client)


def describe(client: docker.APIClient) -> ContainerSpec:
    """Return a container whose image has a volume; it uses plain runc instead of the shim."""
    client.import_image_from_data(
        busybox_archive(),
        repository="rescue",
        tag="test",
        changes=['CMD ["sleep", "1d"]', "VOLUME /data"],
    )
    return ContainerSpec(
        name=NAME,
        image_id="rescue:test",
        hostname="web-1",
        labels={naming.LABEL_UUID: SERVER, naming.LABEL_SCHEMA: naming.SCHEMA},
        runtime="runc",
        limits=machines.LIMITS,
        isolation=Isolation(capabilities=isolation.CAPABILITIES),
        console_log_max_mb=1,
    )


@pytest.fixture
def own(engine: Engine, container: ContainerSpec, docker_client: docker.APIClient) -> Iterator[str]:
    """Yield a server's own container, which was killed and has changed files."""
    before = docker_client.volumes()["Volumes"]
    own = break_down(engine, docker_client, container)
    yield own
    engine.remove_container(NAME)
    engine.remove_container(own)
    engine.remove_image(container.image_id)
    assert docker_client.volumes()["Volumes"] == before


def break_down(engine: Engine, client: docker.APIClient, container: ContainerSpec) -> str:
    own = engine.create_container(container)
    engine.start_container(own)
    run(client, own, "echo broken >/etc/fstab; echo kept >/data/kept; rm /bin/true; sync")
    kill(engine, own)
    return own


def run(client: docker.APIClient, container: str, script: str) -> str:
    command = client.exec_create(container, ["sh", "-c", script])["Id"]
    output: str = client.exec_start(command).decode()
    assert client.exec_inspect(command)["ExitCode"] == 0, output
    return output


def kill(engine: Engine, container: str) -> None:
    engine.signal_container(container, "SIGKILL")
    assert engine.wait_container(container, 30) == 137


def set_up(engine: Engine, own: str, container: ContainerSpec) -> str:
    """Put a server's own container aside, and create the stand-in; return its id."""
    rescue.set_aside(engine, SERVER, engine.inspect_container(own))
    stand_in = rescue.stand_in(container, engine.inspect_storage(own), SERVER)
    return engine.create_container(stand_in)


def test_files_are_mended(
    engine: Engine,
    docker_client: docker.APIClient,
    busybox_image: str,
    container: ContainerSpec,
    own: str,
) -> None:
    image = replace(container, image_id=busybox_image, entrypoint=("sleep",), command=("1d",))
    stand_in = set_up(engine, own, image)
    for _ in range(2):
        engine.start_container(stand_in)
        assert rescue.is_stand_in(engine.inspect_container(NAME))
        found = run(
            docker_client, stand_in, "cat /rescue/etc/fstab /rescue/data/kept; ls /rescue/bin"
        )
        assert found.split()[1] == "kept"
        assert "true" not in found.split()
        assert "sh" in found.split()
        run(docker_client, stand_in, "echo mended >/rescue/etc/fstab; echo 2 >/rescue/data/more")
        kill(engine, stand_in)
    assert rescue.put_back(engine, SERVER) == stand_in
    engine.start_container(NAME)
    assert engine.inspect_container(NAME).id == own
    assert run(docker_client, own, "cat /etc/fstab /data/kept /data/more") == "mended\nkept\n2\n"
    kill(engine, own)
    assert "/volumes/" not in Path("/proc/mounts").read_text()


def test_the_engine_dies_during_a_rescue(own_network: None, state_folder: Path) -> None:
    with own_engine(state_folder / "rescue", "overlay2") as its:
        engine = Engine(its.url, timeout=30, load_timeout=60)
        client = docker.APIClient(base_url=its.url, timeout=60)
        container = describe(client)
        own = break_down(engine, client, container)
        stand_in = set_up(engine, own, container)
        engine.start_container(stand_in)
        run(client, stand_in, "echo mended >/rescue/etc/fstab")
        its.kill()
        its.start()
        assert engine.inspect_container(stand_in).status == "running"
        assert run(client, stand_in, "cat /rescue/etc/fstab /rescue/data/kept") == "mended\nkept\n"
        run(client, stand_in, "echo more >/rescue/data/more; sync")
        kill(engine, stand_in)
        engine.start_container(stand_in)
        assert run(client, stand_in, "cat /rescue/etc/fstab") == "mended\n"
        kill(engine, stand_in)
        assert rescue.put_back(engine, SERVER) == stand_in
        engine.start_container(NAME)
        assert run(client, own, "cat /etc/fstab /data/more") == "mended\nmore\n"
        # After a restart, the engine no longer counts the overlay as mounted, so it can be deleted.
        its.kill()
        its.start()
        rescue.put_back_left(engine)
        engine.remove_container(own)
        assert not client.volumes()["Volumes"]
        client.close()


def test_as_many_layers_as_the_engine_stacks(
    engine: Engine, docker_client: docker.APIClient, busybox_image: str, container: ContainerSpec
) -> None:
    layers = [busybox_archive(), *(archives.tar({f"{n}": b""}) for n in range(LAYERS - 1))]
    config = archives.config(layers, architecture=docker_client.version()["Arch"])
    image = engine.load_image(iter([archives.tar(archives.docker_files(config, layers))]))
    container = replace(container, image_id=image, entrypoint=("sleep",), command=("1d",))
    own = engine.create_container(container)
    try:
        rescue.set_aside(engine, SERVER, engine.inspect_container(own))
        storage = engine.inspect_storage(own)
        assert len(",".join(storage.lowers)) > 4096
        stand_in = rescue.stand_in(replace(container, image_id=busybox_image), storage, SERVER)
        rescue.prepare(engine, SERVER)
        # The second call is the one after a reboot of the host.
        rescue.prepare(engine, SERVER)
        engine.start_container(engine.create_container(stand_in))
        found = run(docker_client, NAME, "ls /rescue; echo mended >/rescue/0")
        assert {str(number) for number in range(LAYERS - 1)} <= set(found.split())
        kill(engine, NAME)
        rescue.put_back(engine, SERVER)
        assert not list(overlay_names.FOLDER.iterdir())
        engine.start_container(own)
        assert run(docker_client, own, "cat /0") == "mended\n"
    finally:
        engine.remove_container(NAME)
        engine.remove_container(own)
        engine.remove_image(image)
