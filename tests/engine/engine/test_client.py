# SPDX-License-Identifier: Apache-2.0
"""The engine module on a real engine; the tests read its results by other means."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from novadocker import exception
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.limits import isolation
from novadocker.virt.docker.model import ContainerSpec, Isolation, Limits
from tests.engine import control_groups
from tests.waiting import until

LABEL = "org.openstack.nova.schema"


@pytest.fixture
def create(engine: Engine, docker_client: docker.APIClient, busybox_image: str) -> Iterator[Any]:
    made = []

    def call(*command: str, name: str = "nova-engine-test", image: str = busybox_image) -> str:
        # The container uses plain runc and its own namespace, because the shim has its own tests.
        spec = ContainerSpec(
            name=name,
            image_id=image,
            hostname="web-1",
            labels={LABEL: "1"},
            runtime="runc",
            limits=Limits(
                cpu_shares=512,
                memory_bytes=64 << 20,
                swap_bytes=0,
                pids=32,
                cpu_period_us=50_000,
                cpu_quota_us=25_000,
                cpuset_cpus=frozenset([1]),
                cpuset_mems=frozenset([0]),
            ),
            isolation=Isolation(capabilities=isolation.CAPABILITIES),
            console_log_max_mb=1,
            entrypoint=command[:1],
            command=command[1:],
        )
        made.append(engine.create_container(spec))
        return made[-1]

    yield call
    for container in made:
        engine.remove_container(container)


def test_limits_are_the_kernels(engine: Engine, create: Any) -> None:
    container = create("sleep", "100")
    engine.start_container(container)
    pid = engine.inspect_container(container).pid
    found = control_groups.value
    assert found(pid, "memory.limit_in_bytes", "memory.max") == f"{64 << 20}"
    assert found(pid, "pids.max", "pids.max") == "32"
    assert found(pid, "cpuset.cpus", "cpuset.cpus") == "1"
    assert found(pid, "cpuset.mems", "cpuset.mems") == "0"
    if control_groups.UNIFIED:
        assert found(pid, "cpu", "cpu.max") == "25000 50000"
        # runc maps 2 to 262144 shares to a weight of 1 to 10000.
        assert found(pid, "cpu", "cpu.weight") == "20"
    else:
        assert found(pid, "cpu.cfs_quota_us", "") == "25000"
        assert found(pid, "cpu.cfs_period_us", "") == "50000"
        assert found(pid, "cpu.shares", "") == "512"


def test_swap_is_the_kernels(engine: Engine, create: Any) -> None:
    container = create("sleep", "100")
    engine.start_container(container)
    pid = engine.inspect_container(container).pid
    try:
        most = control_groups.value(pid, "memory.memsw.limit_in_bytes", "memory.swap.max")
    except FileNotFoundError:
        pytest.skip("this kernel's cgroup v1 does not account for swap")
    # Version 2 has a limit of swap alone; version 1 limits the sum.
    assert most == ("0" if control_groups.UNIFIED else f"{64 << 20}")


def test_files_hostname_and_terminal(engine: Engine, create: Any) -> None:
    container = create("sh", "-c", "hostname; cat /etc/hosts; test -t 1 && echo terminal; sleep 9")
    engine.put_files(container, {"/etc/hosts": b"10.0.0.5\tweb-1\n", "/a/b/c": b"deep"})
    engine.start_container(container)
    assert engine.wait_container(container, 0.5) is None
    lines = engine.read_console(container, 4096).decode().split()
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


@pytest.mark.parametrize("path", ["/../../../..{}/planted", "/etc/../..{}/planted", "..{}/planted"])
def test_files_of_a_path_with_dots_stay_inside(
    engine: Engine, create: Any, tmp_path: Path, path: str
) -> None:
    container = create("sleep", "100")
    # Newer engines refuse such a path.
    refusal = ""
    try:
        engine.put_files(container, {path.format(tmp_path): b"x"})
    except exception.EngineError as error:
        refusal = str(error)
    assert list(tmp_path.iterdir()) == []
    if refusal:
        assert "not a valid archive" in refusal
    else:
        assert engine.read_file(container, f"{tmp_path}/planted") == b"x"


def test_files_are_read_from_a_container_in_any_state(engine: Engine, create: Any) -> None:
    container = create(
        "sh", "-c", "cd /etc; ln -s hosts link; mkfifo pipe; : >empty; truncate -s 70K large; cat"
    )
    engine.put_files(container, {"/etc/hosts": b"10.0.0.5\tweb-1\n"})

    def read() -> list[bytes | None]:
        names = ("hosts", "link", "pipe", "empty", "large", "missing", "")
        return [engine.read_file(container, f"/etc/{name}") for name in names]

    assert read() == [b"10.0.0.5\tweb-1\n", None, None, None, None, None, None]
    engine.start_container(container)
    assert engine.wait_container(container, 0.5) is None
    expected = [b"10.0.0.5\tweb-1\n", None, None, b"", None, None, None]
    assert read() == expected
    engine.pause_container(container)
    assert read() == expected
    engine.unpause_container(container)
    engine.signal_container(container, "SIGKILL")
    assert engine.wait_container(container, 10) == 137
    assert read() == expected


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


def test_settings_of_an_image(engine: Engine, docker_client: docker.APIClient) -> None:
    settings = ["ENV A=1 B=2", "LABEL x=y", "WORKDIR /w", "VOLUME /v1 /v2"]
    docker_client.import_image_from_data(b"\0" * 10240, "settings", "test", changes=settings)
    try:
        found = engine.inspect_image("settings:test")
        assert {"A=1", "B=2"} <= set(found.environment)
        assert found.labels == ("x", "y")
        assert found.working_folder == "/w"
        assert set(found.volumes) == {"/v1", "/v2"}
    finally:
        docker_client.remove_image("settings:test")


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
    took = []
    for _ in range(5):
        started = time.monotonic()
        usage = engine.read_usage(container)
        took.append(time.monotonic() - started)
    # The engine takes a second sample exactly one second after the first.
    assert min(took) < 0.9, "waited for a second sample"
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


def test_a_flood_of_output_is_bounded(
    engine: Engine, create: Any, docker_client: docker.APIClient
) -> None:
    script = "yes $(seq 1 2000 | tr '\\n' ' ') | head -c 20000000; echo; echo the end; sleep 100"
    container = create("sh", "-c", script)
    engine.start_container(container)
    until(lambda: engine.read_console(container, 1000).endswith(b"the end\r\n"))
    logs = (Path(engine.info().data_root) / "containers" / container).glob("*.log*")
    # The limit is 1 MiB in two files; the engine closes a file after the line that fills it.
    assert sum(path.stat().st_size for path in logs) < (1 << 20) + 200_000
    assert len(engine.read_console(container, 1000)) == 1000
    whole = engine.read_console(container, 100 * 1024)
    assert len(whole) == 100 * 1024
    assert whole.endswith(b"the end\r\n")


def test_the_console_log_outlives_a_restart(engine: Engine, create: Any) -> None:
    container = create("sh", "-c", "echo one; sleep 100")
    for _ in range(2):
        engine.start_container(container)
        engine.wait_container(container, 0.3)
        engine.signal_container(container, "SIGKILL")
        engine.wait_container(container, 10)
    assert engine.read_console(container, 1000) == b"one\r\none\r\n"
