# SPDX-License-Identifier: Apache-2.0
"""The cloud the tests talk to: brought up once, left running."""

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openstack.connection import Connection

from devcloud.clients import connect
from devcloud.images import archive_path
from devcloud.settings import CHECKOUT, Settings, load_settings
from tests.cloud import leaks
from tests.cloud.servers import Opened, Servers

BRING_UP_SECONDS = 1500
HOSTS = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what makes the quick tests of survival long ones."""
    parser.addoption("--every-step", action="store_true", help="long ones, too")


@pytest.fixture(scope="session")
def long_run(pytestconfig: pytest.Config) -> None:
    """Leave tests out that take minutes, unless they are asked for; before anything is set up."""
    if not pytestconfig.getoption("--every-step"):
        pytest.skip("one of --every-step")


@pytest.fixture(scope="session")
def cloud() -> Settings:
    """A cloud of two hosts with Prometheus that is up; seconds when it was up before."""
    done = subprocess.run(
        [sys.executable, "-m", "devcloud", "up"],
        cwd=CHECKOUT,
        env={**os.environ, "DEVCLOUD_HOSTS": str(HOSTS), "DEVCLOUD_WATCH": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BRING_UP_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"the cloud does not come up:\n{done.stdout}", pytrace=False)
    return load_settings()


@pytest.fixture(scope="session")
def admin(cloud: Settings) -> Iterator[Connection]:
    """The administrator's connection."""
    with connect(cloud, "admin") as connection:
        yield connection


@pytest.fixture(scope="session")
def demo(cloud: Settings) -> Iterator[Connection]:
    """The connection of a plain tenant: project ``demo``, role ``member``."""
    with connect(cloud, "demo") as connection:
        yield connection


@pytest.fixture(scope="session", autouse=True)
def no_leaks(cloud: Settings, admin: Connection) -> Iterator[None]:
    """After all tests the machine and the cloud hold what they held before."""
    before = leaks.inventory(cloud, admin)
    yield
    assert leaks.leaked_for_good(cloud, admin, before) == {}


@pytest.fixture(scope="session", autouse=True)
def first_host_only(cloud: Settings, admin: Connection) -> Iterator[None]:
    """Have the first host alone take servers, so that a test knows where its servers are."""
    others = [
        service
        for service in admin.compute.services(binary="nova-compute")
        if service.host in {host.name for host in cloud.hosts[1:]} and service.status == "enabled"
    ]
    for service in others:
        admin.compute.disable_service(service, disabled_reason="closed by the tests")
    yield
    for service in others:
        admin.compute.enable_service(service)


@pytest.fixture
def opened(cloud: Settings, admin: Connection) -> Opened:
    """Have servers land on some hosts alone, while a block runs."""
    hosts = {host.name for host in cloud.hosts}

    def services() -> list[Any]:
        found = admin.compute.services(binary="nova-compute")
        return [service for service in found if service.host in hosts]

    def enable(names: set[str]) -> None:
        for service in services():
            if service.host in names:
                admin.compute.enable_service(service)
            else:
                admin.compute.disable_service(service, disabled_reason="closed by the tests")

    @contextlib.contextmanager
    def call(*names: str) -> Iterator[None]:
        before = {service.host for service in services() if service.status == "enabled"}
        enable(set(names))
        try:
            yield
        finally:
            enable(before)

    return call


@pytest.fixture
def servers(demo: Connection) -> Iterator[Servers]:
    """The tenant's servers, deleted after the test."""
    made = Servers(demo)
    yield made
    made.delete_all()


@pytest.fixture(scope="session")
def tenant_network(demo: Connection) -> str:
    """The namespace from which the network ``private`` is reached."""
    return f"qdhcp-{demo.network.find_network('private').id}"


@pytest.fixture
def image(demo: Connection) -> Iterator[Callable[..., str]]:
    """Upload images: ``image(content, os_command_line=...)`` returns a new image's name."""
    made = []

    def upload(content: bytes | Path, **properties: str) -> str:
        name = f"test-{uuid.uuid4().hex[:8]}"
        options = {"container_format": "docker", "disk_format": "raw", **properties}
        if isinstance(content, Path):
            options["filename"] = str(content)
        else:
            options["data"] = content
        made.append(demo.image.create_image(name, allow_duplicates=True, wait=True, **options))
        return name

    yield upload
    for found in made:
        demo.image.delete_image(found)


@pytest.fixture
def new_port(demo: Connection, admin: Connection) -> Iterator[Callable[..., Any]]:
    """Create ports by the name of their network; they are deleted after the test."""
    ports = []

    def create(network: str, **attributes: Any) -> Any:
        found = demo.network.find_network(network).id
        ports.append(demo.network.create_port(network_id=found, **attributes))
        return ports[-1]

    yield create
    for port in ports:
        # a tenant may not while a server has it
        admin.network.delete_port(port, ignore_missing=True)


@pytest.fixture(scope="session")
def busybox(cloud: Settings) -> Path:
    """The archive of the image ``busybox``."""
    return archive_path(cloud, "busybox")
