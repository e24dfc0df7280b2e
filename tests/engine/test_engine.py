# SPDX-License-Identifier: Apache-2.0
"""The engine module against a real engine; what it made is read back by other means."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from novadocker import exception
from novadocker.virt.docker.engine import Engine
from novadocker.virt.docker.model import ContainerSpec, Limits

LABEL = "org.openstack.nova.schema"


@pytest.fixture
def engine(engine_url: str) -> Engine:
    return Engine(engine_url, timeout=30, load_timeout=60)


@pytest.fixture
def create(engine: Engine, docker_client: docker.APIClient, busybox_image: str) -> Iterator[Any]:
    made = []

    def call(*command: str, name: str = "nova-engine-test", image: str = busybox_image) -> str:
        # plain runc with a namespace of its own: the shim has its own tests
        spec = ContainerSpec(
            name=name,
            image_id=image,
            hostname="web-1",
            labels={LABEL: "1"},
            runtime="runc",
            limits=Limits(
                nano_cpus=500_000_000, cpu_shares=512, memory_bytes=64 << 20, swap_bytes=0, pids=32
            ),
            console_log_max_mb=1,
            entrypoint=command[:1],
            command=command[1:],
        )
        made.append(engine.create_container(spec))
        return made[-1]

    yield call
    for container in made:
        engine.remove_container(container)


def cgroup(controller: str, pid: int) -> Path:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return Path("/sys/fs/cgroup", names, path.lstrip("/"))
    pytest.skip("cgroup v2 is covered by the emulated guest")


def test_limits_are_the_kernels(engine: Engine, create: Any) -> None:
    container = create("sleep", "100")
    engine.start_container(container)
    pid = engine.inspect_container(container).pid
    assert (cgroup("memory", pid) / "memory.limit_in_bytes").read_text() == f"{64 << 20}\n"
    assert (cgroup("memory", pid) / "memory.memsw.limit_in_bytes").exists() is False or (
        cgroup("memory", pid) / "memory.memsw.limit_in_bytes"
    ).read_text() == f"{64 << 20}\n"
    assert (cgroup("pids", pid) / "pids.max").read_text() == "32\n"
    cpu = cgroup("cpu", pid)
    assert (cpu / "cpu.shares").read_text() == "512\n"
    quota, period = (int((cpu / f"cpu.cfs_{n}_us").read_text()) for n in ("quota", "period"))
    assert quota / period == 0.5


def test_files_hostname_and_terminal(engine: Engine, create: Any) -> None:
    container = create("sh", "-c", "hostname; cat /etc/hosts; test -t 1 && echo terminal; sleep 9")
    engine.put_files(container, {"/etc/hosts": b"10.0.0.5\tweb-1\n", "/a/b/c": b"deep"})
    engine.start_container(container)
    assert engine.wait_container(container, 0.5) is None
    lines = engine.read_console(container).decode().split()
    assert lines == ["web-1", "10.0.0.5", "web-1", "terminal"]
    pid = engine.inspect_container(container).pid
    assert Path(f"/proc/{pid}/root/a/b/c").read_text() == "deep"


def test_files_stay_inside_the_container(
    engine: Engine, create: Any, tmp_path: Path, docker_client: docker.APIClient
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    container = create("sh", "-c", f"mkdir -p {outside} && ln -s {outside} /link")
    engine.start_container(container)
    assert engine.wait_container(container, 10) == 0
    engine.put_files(container, {"/link/planted": b"x"})
    assert list(outside.iterdir()) == []


def test_life_of_a_container(engine: Engine, create: Any) -> None:
    container = create("sleep", "100")
    assert engine.inspect_container(container).status == "created"
    engine.start_container(container)
    engine.start_container(container)
    assert engine.wait_container(container, 0.2) is None
    found = engine.inspect_container("nova-engine-test")
    assert (found.status, found.id, found.stop_signal) == ("running", container, "SIGTERM")
    assert found.started_at is not None
    engine.pause_container(container)
    assert engine.inspect_container(container).status == "paused"
    engine.unpause_container(container)
    engine.signal_container(container, "SIGKILL")
    assert engine.wait_container(container, 10) == 137
    with pytest.raises(exception.EngineError, match="not running"):
        engine.signal_container(container, "SIGKILL")
    engine.remove_container(container)
    engine.remove_container(container)
    with pytest.raises(exception.ContainerNotFound):
        engine.inspect_container(container)


def test_list_has_every_state_and_only_the_label(
    engine: Engine, create: Any, docker_client: docker.APIClient, busybox_image: str
) -> None:
    foreign = docker_client.create_container(busybox_image, "true", labels={"other": "1"})
    try:
        container = create("sleep", "100")
        listed = engine.list_containers(f"{LABEL}=1")
    finally:
        docker_client.remove_container(foreign)
    assert [(c.id, c.name, c.status) for c in listed] == [
        (container, "nova-engine-test", "created")
    ]
    assert listed[0].labels[LABEL] == "1"


def test_labels_of_an_image_do_not_stand_in_for_ours(
    engine: Engine, create: Any, docker_client: docker.APIClient, busybox_image: str
) -> None:
    forging = docker_client.create_container(busybox_image, "true")
    docker_client.commit(
        forging, repository="forging", tag="test", changes=[f"LABEL {LABEL}=forged other=kept"]
    )
    docker_client.remove_container(forging)
    try:
        found = engine.inspect_container(create("sleep", "100", image="forging:test"))
        engine.remove_container(found.id)
    finally:
        docker_client.remove_image("forging:test")
    assert found.labels == {LABEL: "1", "other": "kept"}


def test_a_name_in_use_is_refused(engine: Engine, create: Any) -> None:
    first = create("sleep", "100")
    with pytest.raises(exception.EngineError, match="already in use"):
        create("sleep", "100")
    assert engine.inspect_container("nova-engine-test").id == first


def test_a_command_that_does_not_exist(engine: Engine, create: Any) -> None:
    container = create("/no/such/command")
    with pytest.raises(exception.EngineError, match="no such file"):
        engine.start_container(container)


def test_usage(engine: Engine, create: Any) -> None:
    container = create("sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 9")
    engine.start_container(container)
    engine.wait_container(container, 0.5)
    started = time.monotonic()
    usage = engine.read_usage(container)
    assert time.monotonic() - started < 0.9, "waited for a second sample"
    assert usage.cpu_nanoseconds > 1_000_000
    assert 0 < usage.memory_bytes < usage.memory_limit_bytes == 64 << 20


def test_info(engine: Engine) -> None:
    info = engine.info()
    assert info.live_restore
    assert "runc" in info.runtimes
    assert Path(info.runtimes["novadocker"]).is_file()
    assert info.backing_filesystem
    assert info.cpus > 0
    assert Path(info.data_root).is_dir()


def test_an_engine_that_is_away() -> None:
    away = Engine("unix:///nonexistent/docker.sock", timeout=1, load_timeout=1)
    with pytest.raises(exception.EngineUnavailable, match="nonexistent"):
        away.info()
