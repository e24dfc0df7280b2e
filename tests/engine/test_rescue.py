# SPDX-License-Identifier: Apache-2.0
"""Rescues on a real engine: one container mends the files of another."""

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from novadocker.virt.docker import isolation, rescue, spec
from novadocker.virt.docker.engine import Engine
from novadocker.virt.docker.model import ContainerSpec, Isolation
from tests.engine import machines
from tests.engine.conftest import busybox_archive

SERVER = str(uuid.uuid4())
NAME = spec.container_name(SERVER)


@pytest.fixture
def container(docker_client: docker.APIClient) -> ContainerSpec:
    """A container whose image has a volume; of plain runc: the shim has its own tests."""
    docker_client.import_image_from_data(
        busybox_archive(),
        repository="rescue",
        tag="test",
        changes=['CMD ["sleep", "1d"]', "VOLUME /data"],
    )
    return ContainerSpec(
        name=NAME,
        image_id="rescue:test",
        hostname="web-1",
        labels={spec.LABEL_UUID: SERVER, spec.LABEL_SCHEMA: spec.SCHEMA},
        runtime="runc",
        limits=machines.LIMITS,
        isolation=Isolation(capabilities=isolation.CAPABILITIES),
        console_log_max_mb=1,
    )


@pytest.fixture
def own(engine: Engine, container: ContainerSpec, docker_client: docker.APIClient) -> Iterator[str]:
    """A server's own container, which was killed and has changed files."""
    before = docker_client.volumes()["Volumes"]
    own = engine.create_container(container)
    engine.start_container(own)
    run(docker_client, own, "echo broken >/etc/fstab; echo kept >/data/kept; rm /bin/true; sync")
    kill(engine, own)
    yield own
    engine.remove_container(NAME)
    engine.remove_container(own)
    engine.remove_image(container.image_id)
    assert docker_client.volumes()["Volumes"] == before


def run(client: docker.APIClient, container: str, script: str) -> str:
    command = client.exec_create(container, ["sh", "-c", script])["Id"]
    output: str = client.exec_start(command).decode()
    assert client.exec_inspect(command)["ExitCode"] == 0, output
    return output


def kill(engine: Engine, container: str) -> None:
    engine.signal_container(container, "SIGKILL")
    assert engine.wait_container(container, 30) == 137


def test_files_are_mended(
    engine: Engine,
    docker_client: docker.APIClient,
    busybox_image: str,
    container: ContainerSpec,
    own: str,
) -> None:
    rescue.set_aside(engine, SERVER, engine.inspect_container(own))
    stand_in = engine.create_container(
        rescue.stand_in(
            replace(container, image_id=busybox_image, entrypoint=("sleep",), command=("1d",)),
            engine.inspect_storage(own),
        )
    )
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
