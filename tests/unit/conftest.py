# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the unit tests: Nova's objects, and the driver on fakes of its own modules."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nova import conf, config, objects
from nova import context as nova_context
from nova.network import model as network_model
from nova.tests.unit import fake_instance

from novadocker.virt.docker.containers import lifecycle
from novadocker.virt.docker.driver import DockerDriver
from novadocker.virt.docker.engine import aftermath
from tests import fuzz  # noqa: F401 - registers a profile of hypothesis
from tests.unit import fakes


@pytest.fixture(scope="session")
def state_paths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parent directory of each test's ``state_path``."""
    return tmp_path_factory.mktemp("nova")


@pytest.fixture(autouse=True)
def handled_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first process of each container, which is this process, handle each signal."""
    monkeypatch.setattr(lifecycle, "signals", SimpleNamespace(handles=lambda *_: True))


@pytest.fixture(autouse=True)
def failed_pulls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Note failed pulls, after which a thread would enter a privileged context."""
    found: list[tuple[object, ...]] = []
    monkeypatch.setattr(aftermath, "watch", lambda *arguments: found.append(arguments))
    return found


@pytest.fixture(autouse=True)
def nova_configuration(state_paths: Path) -> Iterator[None]:
    """Set Nova's options to their defaults, and ``state_path`` to a directory of the test.

    The default of ``state_path`` is the directory that Nova is installed in, which all tests share
    and an ordinary user cannot write to.
    """
    objects.register_all()
    config.parse_args([], default_config_files=[], configure_db=False, init_rpc=False)
    conf.CONF.set_override("state_path", tempfile.mkdtemp(dir=state_paths))
    yield
    conf.CONF.clear_override("state_path")
    conf.CONF.reset()


@pytest.fixture
def options(nova_configuration: None) -> Iterator[Any]:
    """Yield a function that sets options for one test: ``options(name=value, group=...)``."""

    overridden: list[tuple[str | None, str]] = []

    def override(group: str | None = None, **values: object) -> None:
        for name, value in values.items():
            conf.CONF.set_override(name, value, group=group)
            overridden.append((group, name))

    yield override
    for group, name in overridden:
        conf.CONF.clear_override(name, group=group)


@pytest.fixture
def instance(nova_configuration: None) -> objects.Instance:
    found = fake_instance.fake_instance_obj(nova_context.get_admin_context(), project_id="p1")
    found.flavor = objects.Flavor(
        name="d1.tiny", vcpus=2, memory_mb=256, root_gb=1, ephemeral_gb=0, swap=0, extra_specs={}
    )
    found.config_drive = ""
    found.numa_topology = None
    found.trusted_certs = None
    found.system_metadata = {}
    found.metadata = {}
    found.hostname = "web-1"
    found.info_cache = objects.InstanceInfoCache(network_info=network_info())
    return found


def network_info(active: bool = False) -> network_model.NetworkInfo:
    subnet = network_model.Subnet(
        cidr="10.0.0.0/24",
        dns=[network_model.IP("10.0.0.2")],
        gateway=network_model.IP("10.0.0.1"),
        ips=[network_model.FixedIP(address="10.0.0.5")],
        routes=[],
    )
    network = network_model.Network(id="net", bridge="br-int", subnets=[subnet], mtu=1450)
    return network_model.NetworkInfo(
        [
            network_model.VIF(
                id="0e6e0b4b-7a41-4f0b-9f1a-0f64e1f5a1c1",
                address="fa:16:3e:00:00:05",
                network=network,
                type=network_model.VIF_TYPE_OVS,
                devname="tap0e6e0b4b-7a",
                active=active,
            )
        ]
    )


@pytest.fixture(name="network_info")
def network_info_fixture() -> network_model.NetworkInfo:
    return network_info()


@pytest.fixture
def image_meta() -> objects.ImageMeta:
    return objects.ImageMeta.from_dict(
        {"id": "7a2f1ab6-6a8e-4d69-8a3e-0b1f5f8a3c11", "properties": {}}
    )


@pytest.fixture
def fake_host(nova_configuration: None) -> fakes.FakeHost:
    """Return the fakes of all collaborators of the driver."""
    return fakes.FakeHost()


@pytest.fixture
def engine(fake_host: fakes.FakeHost) -> fakes.FakeEngine:
    return fake_host.engine


@pytest.fixture
def network(fake_host: fakes.FakeHost) -> fakes.FakeNetwork:
    return fake_host.network


@pytest.fixture
def drives(fake_host: fakes.FakeHost) -> fakes.FakeDrives:
    return fake_host.drives


@pytest.fixture
def guest_files(fake_host: fakes.FakeHost) -> fakes.FakeGuestFiles:
    return fake_host.guest_files


@pytest.fixture
def enforcement(fake_host: fakes.FakeHost) -> fakes.FakeEnforcement:
    return fake_host.enforcement


@pytest.fixture
def transfer(fake_host: fakes.FakeHost) -> fakes.FakeTransfer:
    return fake_host.transfer


@pytest.fixture
def virtapi() -> fakes.FakeVirtAPI:
    return fakes.FakeVirtAPI()


@pytest.fixture
def driver(fake_host: fakes.FakeHost, virtapi: fakes.FakeVirtAPI) -> DockerDriver:
    """Return the driver after ``init_host``, on the fakes."""
    found = DockerDriver(virtapi, fake_host.collaborators())
    found.init_host("host1")
    return found
