# SPDX-License-Identifier: Apache-2.0
"""Image archives of a hostile source host, on a real engine."""

import hashlib
import secrets
from collections.abc import Iterator

import docker
import pytest

from novadocker import exception
from novadocker.virt.docker.migration import destination, protocol
from novadocker.virt.docker.migration.transports.direct import Load
from tests import archives
from tests.engine.busybox import busybox_archive
from tests.engine.moving import data_root, host

__all__ = ["data_root", "host"]

VICTIM = "victim:latest"


class Image:
    """An image that the engine lacks, of the victim's layer and one of its own."""

    def __init__(self, marker: str, architecture: str) -> None:
        self.layers = [busybox_archive(), archives.tar({"marker": marker.encode()})]
        self.config = archives.config(self.layers, architecture=architecture)
        self.id = f"sha256:{hashlib.sha256(self.config).hexdigest()}"

    def archive(self) -> bytes:
        return archives.tar(archives.docker_files(self.config, self.layers, tags=[VICTIM]))


@pytest.fixture
def victim(docker_client: docker.APIClient, busybox_image: str) -> Iterator[str]:
    """Yield the id of an image whose name a hostile source wants."""
    docker_client.tag(busybox_image, *VICTIM.split(":"))
    yield str(docker_client.inspect_image(VICTIM)["Id"])
    docker_client.remove_image(VICTIM)


@pytest.fixture
def architecture(docker_client: docker.APIClient) -> str:
    return str(docker_client.version()["Arch"])


def send(host: list[str], instance_uuid: str, announced: str, content: bytes) -> None:
    with destination.connect(host, "there", instance_uuid) as found:
        found.send(protocol.Greeting(instance_uuid, secrets.token_hex(16), announced))
        assert not found.expect(protocol.Ready, 30).image
        found.send(Load())
        found.send(protocol.Frame(len(content)))
        found.write(content)
        found.send(protocol.Frame(0))
        found.expect_answer(Load())


def test_names_in_an_archive_have_no_effect(
    host: list[str],
    instance_uuid: str,
    docker_client: docker.APIClient,
    victim: str,
    architecture: str,
) -> None:
    image = Image(secrets.token_hex(8), architecture)
    send(host, instance_uuid, image.id, image.archive())
    assert docker_client.inspect_image(VICTIM)["Id"] == victim
    (name,) = docker_client.inspect_image(image.id)["RepoTags"]
    docker_client.remove_image(name)


def test_another_image_than_the_announced_one_is_not_loaded(
    host: list[str],
    instance_uuid: str,
    docker_client: docker.APIClient,
    victim: str,
    architecture: str,
) -> None:
    image, announced = (Image(secrets.token_hex(8), architecture) for _ in range(2))
    with pytest.raises(exception.ResizeRefused, match="another image"):
        send(host, instance_uuid, announced.id, image.archive())
    assert docker_client.inspect_image(VICTIM)["Id"] == victim
    for missing in (image, announced):
        with pytest.raises(docker.errors.ImageNotFound):
            docker_client.inspect_image(missing.id)
