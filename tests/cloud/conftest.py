# SPDX-License-Identifier: Apache-2.0
"""Fixtures for a cloud that the first test starts and that continues to run."""

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
from devcloud.services import open_hosts
from devcloud.settings import CHECKOUT, Settings, load_settings
from tests.cloud import leaks, owners
from tests.cloud.servers import Opened, Servers

BRING_UP_SECONDS = 1500
HOSTS = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that lengthens the tests of interruptions."""
    parser.addoption("--every-step", action="store_true", help="run the long tests too")


@pytest.fixture(scope="session")
def long_run(pytestconfig: pytest.Config) -> None:
    """Skip tests that take minutes unless an option selects them, before any other fixture."""
    if not pytestconfig.getoption("--every-step"):
        pytest.skip("runs with --every-step only")


@pytest.fixture(scope="session")
def cloud() -> Settings:
    """Start a cloud of two hosts with Prometheus and Cinder; takes seconds if it is running."""
    done = subprocess.run(
        [sys.executable, "-m", "devcloud", "up"],
        cwd=CHECKOUT,
        env={
            **os.environ,
            "DEVCLOUD_HOSTS": str(HOSTS),
            "DEVCLOUD_WATCH": "1",
            "DEVCLOUD_VOLUMES": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BRING_UP_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"the cloud did not start:\n{done.stdout}", pytrace=False)
    return load_settings()


@pytest.fixture(scope="session")
def admin(cloud: Settings) -> Iterator[Connection]:
    """Yield the administrator's connection."""
    with connect(cloud, "admin") as connection:
        yield connection


@pytest.fixture(scope="session")
def demo(cloud: Settings) -> Iterator[Connection]:
    """Yield the connection of a plain tenant: project ``demo``, role ``member``."""
    with connect(cloud, "demo") as connection:
        yield connection


@pytest.fixture(scope="session", autouse=True)
def no_leaks(cloud: Settings, admin: Connection) -> Iterator[None]:
    """Check that, after all tests, the machine and the cloud hold only what they held before."""
    before = leaks.inventory(cloud, admin)
    yield
    assert leaks.leaked_for_good(cloud, admin, before) == {}


@pytest.fixture(scope="session", autouse=True)
def first_host_only(cloud: Settings, admin: Connection) -> Iterator[None]:
    """Enable only the first host, so that tests can predict the hosts of their servers."""
    with open_hosts(admin, cloud, cloud.hosts[:1]):
        yield


@pytest.fixture
def opened(cloud: Settings, admin: Connection) -> Opened:
    """Return a context manager that enables only some hosts, by name."""

    def call(*names: str) -> contextlib.AbstractContextManager[None]:
        return open_hosts(admin, cloud, [host for host in cloud.hosts if host.name in names])

    return call


@pytest.fixture
def servers(demo: Connection) -> Iterator[Servers]:
    """Yield the tenant's servers and delete them after the test."""
    made = Servers(demo)
    yield made
    made.delete_all()


@pytest.fixture(scope="session")
def tenant_network(cloud: Settings, demo: Connection) -> str:
    """Return the network namespace that reaches the network ``private``."""
    return cloud.tenant_namespace(demo.network.find_network("private").id)


@pytest.fixture
def image(demo: Connection) -> Iterator[Callable[..., str]]:
    """Yield a function that uploads an image and returns its name.

    A call is ``image(content, os_command_line=...)``.
    """
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
def engine(cloud: Settings) -> Iterator[Any]:
    """Yield a client of the first host's engine."""
    with contextlib.closing(owners.engine_of(cloud, cloud.hosts[0])) as client:
        yield client


@pytest.fixture
def new_port(demo: Connection, admin: Connection) -> Iterator[Callable[..., Any]]:
    """Yield a function that creates ports by their network's name; delete them after the test."""
    ports = []

    def create(network: str, **attributes: Any) -> Any:
        found = demo.network.find_network(network).id
        ports.append(demo.network.create_port(network_id=found, **attributes))
        return ports[-1]

    yield create
    for port in ports:
        # A tenant must not delete a port that a server uses.
        admin.network.delete_port(port, ignore_missing=True)


@pytest.fixture(scope="session")
def busybox(cloud: Settings) -> Path:
    """Return the path of the archive of the image ``busybox``."""
    return archive_path(cloud, "busybox")
