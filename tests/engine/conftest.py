# SPDX-License-Identifier: Apache-2.0
"""A private Docker engine and a private Open vSwitch for the tests that need real ones.

The whole session runs in its own network namespace, so that it affects neither the machine's
network nor another Open vSwitch. It shares only names outside the namespace with the machine:
network namespaces and runtime records. Tests take their instance UUIDs from ``instance_uuid``,
whose common prefix identifies the session's names.
"""

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import docker
import os_vif
import pytest
import vif_plug_ovs.privsep

from novadocker import privsep
from novadocker.linux import namespaces
from novadocker.virt.docker.engine import aftermath
from novadocker.virt.docker.engine.client import Engine
from tests.engine import daemons, hosts, packages
from tests.engine.busybox import busybox_archive
from tests.engine.engines import CONTAINERD_STORE, OwnEngine, remove_containers
from tests.engine.switch import Switch, use_switch
from tests.fake_glance import FakeGlance


@pytest.fixture(scope="session")
def state_folder() -> Iterator[Path]:
    """Yield the directory of all files of the session's daemons."""
    folder, lock = daemons.make_state_folder()
    yield folder
    left = daemons.processes_of(folder)
    daemons.clear(folder)
    lock.close()
    assert left == []


@pytest.fixture(scope="session")
def home_network() -> Iterator[str]:
    """Yield the path of the network namespace in which the session was started."""
    home = namespaces.open_namespace()
    yield f"/proc/{os.getpid()}/fd/{home}"
    os.close(home)


@pytest.fixture(scope="session")
def engine_programs(pytestconfig: pytest.Config, home_network: str) -> Iterator[None]:
    """Run the session on the Docker Engine of the option ``--engine``."""
    suite = pytestconfig.getoption("--engine")
    with pytest.MonkeyPatch.context() as patch:
        if suite:
            patch.setenv("PATH", packages.search_path(suite, home_network))
        yield


@pytest.fixture(scope="session", autouse=True)
def own_network(state_folder: Path, home_network: str, engine_programs: None) -> Iterator[None]:
    """Run the session in its own network namespace; check that nothing remains at its end."""
    namespaces.enter_new_namespace()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # Some kernels create devices in each new namespace.
    before = _devices()
    yield
    left = _devices() - before
    namespaces.enter_namespace_at(home_network)
    assert left == set()
    assert daemons.namespaces_of(state_folder) == []
    assert daemons.records_of(state_folder) == []
    assert daemons.given_records_of(state_folder) == []
    assert daemons.marks_of(state_folder) == []
    assert daemons.ids_of(state_folder) == []


@pytest.fixture(scope="session", autouse=True)
def short_aftermath() -> Iterator[None]:
    """End the watch of a failed pull soon, so that it does not reach into other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aftermath, "_CALM_SECONDS", 5)
        yield


@pytest.fixture(scope="session", autouse=True)
def privileged(own_network: None) -> None:
    """Run privileged functions in this process, which is root."""
    privsep.network_pctxt.set_client_mode(False)
    privsep.interior_pctxt.set_client_mode(False)
    privsep.view_pctxt.set_client_mode(False)
    privsep.storage_pctxt.set_client_mode(False)
    privsep.transfer_pctxt.set_client_mode(False)
    privsep.volume_pctxt.set_client_mode(False)
    vif_plug_ovs.privsep.vif_plug.set_client_mode(False)


@pytest.fixture(scope="session")
def ovs(own_network: None, state_folder: Path) -> Iterator[Switch]:
    """Yield an Open vSwitch with the bridge br-int, which os-vif uses."""
    switch = Switch(state_folder / "ovs")
    switch.start()
    use_switch(switch.connection)
    yield switch
    ports = switch.ports()
    # Without this call, os-vif's thread tries to reconnect forever.
    os_vif._EXT_MANAGER["ovs"].obj.ovsdb.ovsdb.ovsdb_connection.stop()
    switch.stop()
    assert ports == []


@pytest.fixture(scope="session")
def session_engine(
    own_network: None, state_folder: Path, pytestconfig: pytest.Config
) -> Iterator[OwnEngine]:
    """Yield an empty Docker engine with the runtime shim registered."""
    folder = state_folder / "docker"
    folder.mkdir()
    own = OwnEngine(
        folder, **(CONTAINERD_STORE if pytestconfig.getoption("--containerd-store") else {})
    )
    yield own
    remove_containers(own.url)
    own.stop()


@pytest.fixture(scope="session")
def engine_url(session_engine: OwnEngine) -> str:
    """Return the URL of the session's engine."""
    return session_engine.url


@pytest.fixture(scope="session")
def engine(engine_url: str) -> Engine:
    """Return the driver's client of the engine."""
    return Engine(engine_url, timeout=30, load_timeout=60)


@pytest.fixture
def docker_client(engine_url: str) -> Iterator[docker.APIClient]:
    """Yield a client of the engine's REST API; delete the containers that a test leaves."""
    client = docker.APIClient(base_url=engine_url, timeout=60)
    yield client
    client.close()
    remove_containers(engine_url)


@pytest.fixture(scope="session")
def busybox_image(engine_url: str) -> str:
    """Return the name of an image with busybox and all its commands, built offline."""
    client = docker.APIClient(base_url=engine_url, timeout=60)
    client.import_image_from_data(
        busybox_archive(), repository="busybox", tag="test", changes=['CMD ["sleep", "1d"]']
    )
    client.close()
    return "busybox:test"


@pytest.fixture
def new_instance_uuid(state_folder: Path) -> Callable[[], str]:
    """Return a function that returns instance UUIDs with the session's prefix."""
    mark = (state_folder / "mark").read_text()
    return lambda: mark + str(uuid.uuid4())[len(mark) :]


@pytest.fixture
def instance_uuid(new_instance_uuid: Callable[[], str]) -> str:
    return new_instance_uuid()


@pytest.fixture
def host_of(
    ovs: Switch,
    fake_glance: FakeGlance,
    state_folder: Path,
    tmp_path: Path,
    new_instance_uuid: Callable[[], str],
) -> hosts.HostOf:
    """Return a function that yields an engine's compute host: ``with host_of(engine) as host``."""

    def make(engine: OwnEngine, api_timeout: int = 60) -> AbstractContextManager[hosts.ComputeHost]:
        return hosts.compute_host(
            engine,
            ovs,
            fake_glance,
            state_folder,
            tmp_path / "instances",
            new_instance_uuid,
            api_timeout,
        )

    return make


@pytest.fixture
def compute_host(host_of: hosts.HostOf, session_engine: OwnEngine) -> Iterator[hosts.ComputeHost]:
    """Yield the compute host of the session's engine."""
    with host_of(session_engine) as host:
        yield host


def _devices() -> set[str]:
    command = ["ip", "-json", "link"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {link["ifname"] for link in json.loads(shown)}
