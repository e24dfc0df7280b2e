# SPDX-License-Identifier: Apache-2.0
"""The words of this engine for what goes wrong: each has a known form, and no path of the host."""

from collections.abc import Callable, Iterator
from typing import Any

import docker
import pytest

from novadocker.virt.docker.engine import engine_errors
from tests import archives

ABSENT = "0" * 64


@pytest.fixture
def refusal(docker_client: docker.APIClient) -> Callable[[Callable[[], Any]], str]:
    """Return a function that returns the sentence about a request that the engine refuses."""
    data_root = docker_client.info()["DockerRootDir"]

    def ask(request: Callable[[], Any]) -> str:
        with pytest.raises(docker.errors.APIError) as caught:
            request()
        found = engine_errors.describe(caught.value.explanation)
        assert found != engine_errors.OTHER, caught.value.explanation
        assert data_root not in found
        return found

    return ask


@pytest.mark.parametrize(
    ("config", "host", "words"),
    [
        ({"command": ["/no/such"]}, {}, 'exec: "/no/such": no such file'),
        ({"command": ["such"]}, {}, "executable file not found"),
        ({"command": ["/tmp"]}, {}, 'exec: "/tmp"'),
        ({"command": ["true"], "user": "web"}, {}, 'no user "web"'),
        ({"command": ["true"], "user": "0:web"}, {}, 'no group "web"'),
        ({"command": ["true"], "user": "99999999999"}, {}, "out of range"),
        ({"command": ["true"], "working_dir": "/bin/busybox"}, {}, "not a directory"),
        ({"command": ["true"], "environment": ["=x"]}, {}, "environment"),
        ({"command": ["true"]}, {"mem_limit": 1024}, "minimum memory"),
        ({"command": ["true"]}, {"cpuset_cpus": "900"}, "CPUs are not available"),
        ({"command": ["true"]}, {"nano_cpus": 10**13}, "number of CPUs"),
        ({"command": ["true"]}, {"storage_opt": {"size": "100000000"}}, "storage-opt"),
        ({"command": ["true"]}, {"runtime": "none"}, "no runtime"),
        ({"command": ["true"]}, {"devices": ["/dev/none"]}, "no such file"),
        ({"command": ["true"]}, {"cap_add": ["NONE"]}, "capability CAP_NONE"),
        ({"command": ["true"]}, {"security_opt": ["seccomp={"]}, "seccomp"),
        ({"command": ["true"]}, {"sysctls": {"kernel.none": "1"}}, "sysctl kernel.none"),
        ({"command": ["true"]}, {"sysctls": {"net.ipv4.none": "1"}}, "sysctl net/ipv4/none"),
    ],
)
def test_a_start(
    refusal: Callable[..., str],
    docker_client: docker.APIClient,
    busybox_image: str,
    config: dict[str, Any],
    host: dict[str, Any],
    words: str,
) -> None:
    def start() -> None:
        settings = docker_client.create_host_config(network_mode="none", **host)
        made = docker_client.create_container(busybox_image, host_config=settings, **config)
        try:
            docker_client.start(made)
        finally:
            docker_client.remove_container(made, force=True)

    assert words in refusal(start)


@pytest.fixture
def running(docker_client: docker.APIClient, busybox_image: str) -> Iterator[str]:
    """Yield the id of a running container."""
    settings = docker_client.create_host_config(network_mode="none")
    made = docker_client.create_container(
        busybox_image, ["sleep", "100"], name="refused", host_config=settings
    )["Id"]
    docker_client.start(made)
    yield made
    docker_client.remove_container(made, force=True)


def test_the_state_of_a_container(
    refusal: Callable[..., str], docker_client: docker.APIClient, busybox_image: str, running: str
) -> None:
    client = docker_client
    assert "already in use" in refusal(
        lambda: client.create_container(busybox_image, "true", name="refused")
    )
    assert "not paused" in refusal(lambda: client.unpause(running))
    assert "memory" in refusal(lambda: client.update_container(running, mem_limit=1024))
    assert "CPUs" in refusal(lambda: client.update_container(running, cpuset_cpus="900"))
    assert "file does not exist" in refusal(lambda: client.get_archive(running, "/none"))
    assert "image is in use" in refusal(
        lambda: client.remove_image(client.inspect_image(busybox_image)["Id"])
    )
    client.pause(running)
    assert "already paused" in refusal(lambda: client.pause(running))
    assert "paused" in refusal(lambda: client.exec_create(running, ["true"]))
    client.unpause(running)
    client.kill(running)
    client.wait(running)
    assert "not running" in refusal(lambda: client.kill(running))
    assert "not running" in refusal(lambda: client.exec_create(running, ["true"]))
    assert "container does not exist" in refusal(lambda: client.start(ABSENT))
    assert "image does not exist" in refusal(lambda: client.create_container("none:1", "true"))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (archives.tar({"large": b"x" * 5000})[:2000], "unexpected EOF"),
        (b"x" * 2048, "not a valid archive"),
        (
            archives.tar_of([archives.entry("s", type=b"1", linkname="/proc/self/environ")]),
            "no such file",
        ),
        (
            archives.tar_of([archives.entry("a", b"x"), archives.entry("a/b", b"x")]),
            "not a directory",
        ),
    ],
    ids=["truncated", "no archive", "a link", "a file as a directory"],
)
def test_a_load(
    refusal: Callable[..., str], docker_client: docker.APIClient, layer: bytes, words: str
) -> None:
    architecture = docker_client.version()["Arch"]
    config = archives.config([layer], architecture=architecture)
    content = archives.tar(archives.docker_files(config, [layer]))

    def load() -> None:
        for message in docker_client.load_image(content, quiet=True):
            if "error" in message:
                raise docker.errors.APIError("", explanation=message["error"])

    assert words in refusal(load)
