# SPDX-License-Identifier: Apache-2.0
"""An engine that keeps its images and layers in containerd's image store."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nova import exception as nova_exception
from nova import objects
from nova.compute import power_state
from nova.compute import provider_tree as placement

from novadocker import exception
from novadocker.recovery import layers
from novadocker.recovery.dataroot import DataRoot, RecoveryError
from tests import archives
from tests.engine import engines, image_processes
from tests.engine.busybox import busybox_archive
from tests.engine.engines import OwnEngine
from tests.engine.hosts import ComputeHost, HostOf
from tests.engine.servers import HOST, Nova, Server
from tests.fake_glance import FakeGlance
from tests.waiting import until

_FIRST = 24
"""The first engine with this store."""

SNAPSHOT_ID = "5eed0000-0000-4000-8000-000000000009"
OVERLAY2 = {"features": {"containerd-snapshotter": False}, "storage-driver": "overlay2"}


@pytest.fixture
def own_engine(
    engine_programs: None, state_folder: Path, new_instance_uuid: Callable[[], str]
) -> Iterator[OwnEngine]:
    if engines.major_version() < _FIRST:
        pytest.skip("the engine of Debian 12 has no such store")
    folder = state_folder / new_instance_uuid()[-8:]
    folder.mkdir()
    engine = OwnEngine(folder, **engines.CONTAINERD_STORE)
    yield engine
    engine.stop()


@pytest.fixture
def host(own_engine: OwnEngine, host_of: HostOf) -> Iterator[ComputeHost]:
    with host_of(own_engine) as host:
        yield host


@pytest.fixture
def nova(host: ComputeHost) -> Iterator[Nova]:
    nova = host.start_nova()
    yield nova
    nova.stop()


@pytest.fixture
def server(host: ComputeHost, nova: Nova) -> Iterator[Server]:
    server = nova.spawn(host.new_server("small", (1,)))
    host.survey.mark(server)
    yield server
    nova.destroy(server)
    host.survey.check_nothing_else([])


def pid_of(host: ComputeHost, server: Server) -> int:
    return int(host.client.inspect_container(server.name)["State"]["Pid"])


def report(nova: Nova) -> None:
    tree = placement.ProviderTree()
    tree.new_root(HOST, str(uuid.uuid4()))
    nova.driver.update_provider_tree(tree, HOST)


def test_a_life(host: ComputeHost, nova: Nova, server: Server) -> None:
    info = nova.driver._services.engine.info()
    assert (info.containerd_store, info.storage_driver) == (True, "overlayfs")
    host.survey.check_running(server)
    nova.driver.pause(server.instance())
    assert nova.state(server) == power_state.PAUSED
    nova.driver.unpause(server.instance())
    nova.power_off(server)
    assert nova.state(server) == power_state.SHUTDOWN
    nova.power_on(server)
    nova.reboot(server)
    if not info.containerd_address:
        with pytest.raises(exception.SnapshotFailed, match="Engine 27"):
            nova.snapshot(server, SNAPSHOT_ID)
    else:
        nova.snapshot(server, SNAPSHOT_ID)
        assert server.uuid.encode() in (host.glance.folder / SNAPSHOT_ID).read_bytes()
    server = nova.confirm_resize(nova.resize(server, "large"))
    host.survey.check_running(server)
    server = nova.detach(nova.attach(server, 9), 9)
    nova.periodic()
    host.survey.check_running(server)
    host.survey.check_nothing_else([server])


def test_what_it_lacks_is_refused_before_anything_is_done(
    host: ComputeHost, nova: Nova, server: Server
) -> None:
    pid = pid_of(host, server)
    with pytest.raises(exception.RescueRefused, match="containerd's overlayfs"):
        nova.rescue(server)
    with pytest.raises(nova_exception.InstanceFaultRollback, match="containerd's overlayfs"):
        nova.driver.migrate_disk_and_power_off(
            nova.context,
            server.instance(),
            "203.0.113.9",
            server.instance().flavor,
            server.network_info,
        )
    assert pid_of(host, server) == pid
    host.survey.check_running(server)
    host.survey.check_nothing_else([server])


def test_recovery_is_refused(host: ComputeHost, server: Server) -> None:
    root = DataRoot(host.engine.data_root)
    found = root.find(server.uuid)
    with pytest.raises(RecoveryError, match="containerd's image store"):
        layers.file_system(root, found)


@pytest.mark.parametrize("build", [archives.docker_files, archives.oci_files])
def test_an_image(host: ComputeHost, fake_glance: FakeGlance, build: object) -> None:
    store = image_processes.new_store(host.engine.url)
    contents = [busybox_archive(), archives.tar({"marker": uuid.uuid4().hex.encode()})]
    configuration = archives.config(
        contents,
        config={"Cmd": ["cat", "/marker"], "Env": ["PATH=/bin"]},
        architecture=host.client.version()["Arch"],
    )
    meta: objects.ImageMeta = fake_glance.add(
        str(uuid.uuid4()),
        archives.tar(build(configuration, contents)),  # type: ignore[operator]
    )
    image = store.ensure(None, meta)
    assert image.command == ("cat", "/marker")
    assert store.ensure(None, meta) == image
    host.client.remove_image(f"novadocker/{meta.id}:{meta.checksum[:12]}", force=True)


def test_another_store_hides_the_servers_and_loses_nothing(
    host: ComputeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    nova = host.start_nova()
    server = nova.spawn(host.new_server("small", (1,)))
    host.survey.mark(server)
    pid = pid_of(host, server)
    reports: list[str | None] = []
    monkeypatch.setattr(nova.driver._service_status, "report", reports.append)
    host.engine.stop()
    host.engine.configure(**OVERLAY2)
    host.engine.start_all()
    until(lambda: nova.driver._services.engine.info().storage_driver == "overlay2")
    report(nova)
    assert f"hides 1 servers of the storage driver overlayfs, such as {server.uuid}" in str(
        reports[-1]
    )
    nova.stop()
    refused = Nova(host.glance)
    with pytest.raises(exception.InvalidConfiguration, match="nothing of them is lost"):
        refused.start([])
    refused.driver._services.engine.release()
    host.engine.stop()
    host.engine.configure(**engines.CONTAINERD_STORE, **{"storage-driver": None})
    host.engine.start_all()
    nova = host.start_nova()
    assert pid_of(host, server) == pid
    host.survey.check_running(server)
    nova.destroy(server)
    host.survey.check_nothing_else([])
    nova.stop()
