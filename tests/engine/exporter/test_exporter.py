# SPDX-License-Identifier: Apache-2.0
"""The exporter on a real kernel: its metrics of a server equal the kernel's."""

import queue
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from nova.network import model as network_model
from prometheus_client import CollectorRegistry

from novadocker.exporter import kernel_log, leaks, thinpool
from novadocker.exporter.collector import HostCollector, Places
from novadocker.exporter.incidents import Incident
from novadocker.exporter.rings import Rings
from novadocker.exporter.watch import Watch
from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from novadocker.state_files import namespaces
from novadocker.virt.docker.network import vif
from tests.engine import control_groups, machines, networks
from tests.engine.engines import THIN_OPTIONS, own_engine, why_no_devicemapper
from tests.engine.switch import Switch

MIB = 1 << 20
MEMORY = 32 * MIB
PIDS = 20


@pytest.fixture(scope="module")
def client(engine_url: str) -> Iterator[docker.APIClient]:
    with machines.connected(engine_url) as found:
        yield found


@pytest.fixture(scope="module")
def told(
    client: docker.APIClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[queue.Queue[Incident]]:
    """Yield the queue of reported incidents."""
    found: queue.Queue[Incident] = queue.Queue()
    rings = Rings(tmp_path_factory.mktemp("kernel"))
    containers = Path(client.info()["DockerRootDir"], "containers")
    watch = Watch(Path("/"), containers, rings, kernel_log.open_log(), found.put)
    watch.start()
    yield found
    watch.close()


@pytest.fixture(scope="module")
def server(client: docker.APIClient, told: queue.Queue[Incident]) -> Iterator[dict[str, str]]:
    """Yield a server with small limits that has hit its process and memory limits."""
    instance = str(uuid.uuid4())
    labels = {
        "org.openstack.nova.schema": "1",
        "org.openstack.nova.instance_uuid": instance,
        "org.openstack.nova.instance_name": "exported",
        "org.openstack.nova.project_id": "project",
        "org.openstack.nova.flavor": "small",
    }
    limits = client.create_host_config(
        mem_limit=MEMORY,
        memswap_limit=MEMORY,
        pids_limit=PIDS,
        cpu_quota=50_000,
        cpu_period=100_000,
    )
    container = client.create_container(
        machines.IMAGE,
        ["sleep", "1000"],
        name=f"nova-{instance}",
        labels=labels,
        host_config=limits,
        network_disabled=True,
    )["Id"]
    try:
        client.start(container)
        for script in (
            "dd if=/dev/zero of=/dev/null bs=128M count=1",
            "for i in $(seq 22); do sleep 1000 & done",
        ):
            client.exec_start(client.exec_create(container, ["sh", "-c", script])["Id"])
        pid = str(client.inspect_container(container)["State"]["Pid"])
        yield {"uuid": instance, "pid": pid}
    finally:
        client.remove_container(container, force=True)


def stalled(pid: str, resource: str, kind: str) -> float:
    """Return the seconds in a file like memory.pressure, which exists only on some kernels."""
    text = control_groups.value(int(pid), f"{resource}.pressure", f"{resource}.pressure")
    found = re.search(rf"^{kind} .*total=([0-9]+)$", text, re.MULTILINE)
    assert found
    return int(found[1]) / 1e6


def test_what_is_told_is_what_the_kernel_has(
    client: docker.APIClient, engine_url: str, server: dict[str, str]
) -> None:
    places = Places(
        data_root=Path(client.info()["DockerRootDir"]), engine=engine_url.partition("://")[2]
    )
    registry = CollectorRegistry()
    registry.register(HostCollector(places))
    labels = {
        "uuid": server["uuid"],
        "name": "exported",
        "project": "project",
        "flavor": "small",
    }

    def told(name: str) -> float | None:
        return registry.get_sample_value(f"novadocker_server_{name}", labels)

    def kept(older: str, newer: str) -> float:
        return float(control_groups.value(int(server["pid"]), older, newer))

    assert told("pids") == kept("pids.current", "pids.current")
    assert told("pids_limit") == PIDS
    assert (told("pids_limit_hits_total") or 0) >= 1
    assert told("memory_limit_bytes") == MEMORY
    assert told("memory_usage_bytes") == pytest.approx(
        kept("memory.usage_in_bytes", "memory.current"), abs=MIB
    )
    assert told("oom_kills_total") == 1
    assert told("cpu_limit_cores") == 0.5
    assert (told("cpu_seconds_total") or 0) > 0
    if control_groups.UNIFIED:
        waits = {(resource, kind) for resource in ("memory", "io") for kind in ("some", "full")}
        for resource, kind in waits:
            assert registry.get_sample_value(
                "novadocker_server_stalled_seconds_total",
                {**labels, "resource": resource, "kind": kind},
            ) == pytest.approx(stalled(server["pid"], resource, kind), abs=1)
        assert told("memory_unreclaimable_bytes") is not None
    assert registry.get_sample_value("novadocker_host_engine_up") == 1
    assert registry.get_sample_value("novadocker_host_servers") == 1


def test_what_happened_is_told_with_the_culprit(
    server: dict[str, str], told: queue.Queue[Incident]
) -> None:
    found: dict[str, Incident] = {}
    while not {"oom_kill", "pids_limit", "kernel_line"} <= found.keys():
        incident = told.get(timeout=30)
        assert incident.labels["uuid"] == server["uuid"]
        found.setdefault(incident.kind, incident)
    assert found["oom_kill"].process.startswith("dd (pid ")
    assert any("Killed process" in line for line in found["oom_kill"].lines)
    # In some shells, sleep is a builtin.
    assert found["pids_limit"].process in ("sh", "sleep")
    assert found["pids_limit"].count >= 1


def test_what_a_server_left_is_found(ovs: Switch, new_instance_uuid: Callable[[], str]) -> None:
    uuid, port = new_instance_uuid(), networks.simple_vif("10.7.0.5")
    ports = network_model.NetworkInfo([port])
    folder, device = Path(namespace.NAMESPACES), port["devname"]
    vif.plug_vifs(networks.instance(uuid), ports)
    try:
        assert uuid in namespaces.marked()
        assert device not in leaks.veths_without_server(folder, {uuid})
        left = leaks.veths_without_server(folder, set())
        assert device in left
        assert leaks.ports_without_server(ovs.folder, {uuid}, {device}) == 0
        assert leaks.ports_without_server(ovs.folder, set(), {device}) == 1
    finally:
        vif.unplug_vifs(networks.instance(uuid), ports)
        runtime.delete_namespace(uuid)
    assert device not in leaks.veths_without_server(folder, set())


def test_the_thin_pool_of_an_engine(state_folder: Path) -> None:
    if reason := why_no_devicemapper():
        pytest.skip(reason)
    with own_engine(state_folder / "pool", "devicemapper", storage=THIN_OPTIONS) as engine:
        pool = thinpool.read_pool(engine.data_root, engine.url.removeprefix("unix://"))
    # Docker prints four significant digits.
    assert pool["data"].size_bytes == 2_147_000_000
    assert pool["metadata"].size_bytes == 67_110_000
    assert all(0 < space.used_bytes < space.size_bytes for space in pool.values())
