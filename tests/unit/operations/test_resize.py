# SPDX-License-Identifier: Apache-2.0
"""Resize on the same host, on fakes of this project's own modules."""

from types import SimpleNamespace
from typing import Any

import pytest
from nova import exception as nova_exception
from nova import objects
from nova.compute import power_state, task_states

from novadocker import exception
from novadocker.virt.docker.migration.disk_info import SAME_HOST
from tests.unit import fakes
from tests.unit.fakes import FakeEnforcement, FakeEngine, FakeHost, FakeNetwork

MIB = 1 << 20
HERE = SimpleNamespace(source_compute="host1", dest_compute="host1", cross_cell_move=False)


@pytest.fixture
def server(
    driver: Any,
    instance: Any,
    image_meta: Any,
    network_info: Any,
    engine: FakeEngine,
    fake_host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    # Skip the update of Nova's own records.
    monkeypatch.setattr(fake_host.nova_records, "take_back", lambda *_: None)
    driver.spawn(None, instance, image_meta, [], None, {}, network_info=network_info)
    instance.migration_context = None
    instance.task_state = task_states.RESIZE_MIGRATING
    engine.calls.clear()
    return instance


def flavor(**fields: Any) -> objects.Flavor:
    values = {
        **{"name": "large", "vcpus": 4, "memory_mb": 512, "root_gb": 1},
        **{"ephemeral_gb": 0, "swap": 0, "extra_specs": {}},
    }
    return objects.Flavor(**{**values, **fields})


@pytest.fixture
def migrate(driver: Any, server: Any, network_info: Any) -> Any:
    def call(new: objects.Flavor, dest: str | None = None, bdi: Any = None) -> str:
        dest = dest or driver.get_host_ip_addr()
        return str(
            driver.migrate_disk_and_power_off(None, server, dest, new, network_info, bdi, 60, 10)
        )

    return call


def kept(enforcement: FakeEnforcement) -> tuple[int, int]:
    (limits,) = enforcement.kept.values()
    return limits.memory_bytes // MIB, limits.cpu_quota_us


def test_resize_of_a_running_server_touches_nothing_else(
    driver: Any,
    server: Any,
    migrate: Any,
    network_info: Any,
    engine: FakeEngine,
    enforcement: FakeEnforcement,
    network: FakeNetwork,
) -> None:
    old, new = server.flavor, flavor()
    assert kept(enforcement) == (256, 200_000)
    network.wired.clear()
    disk_info = migrate(new)
    assert kept(enforcement) == (512, 400_000)
    assert enforcement.devices == (("tap0e6e0b4b-7a", "eth0"),)
    server.old_flavor, server.flavor = old, new
    driver.finish_migration(None, None, server, disk_info, network_info, None, True, {}, None, True)
    driver.confirm_migration(None, HERE, server, network_info)
    assert kept(enforcement) == (512, 400_000)
    assert driver.get_info(server).state == power_state.RUNNING
    assert engine.calls == []
    # The network was not interrupted, because no port was wired again.
    assert network.wired == set()


@pytest.mark.parametrize(
    ("new", "used", "words"),
    [
        (flavor(memory_mb=64), (100 * MIB, 0), "uses 100 MiB of memory, more than the 64 MiB"),
        (flavor(extra_specs={"docker:shm_size_mb": "5"}), (0, 0), "shm bytes"),
        (flavor(extra_specs={"docker:sysctl:kernel.msgmax": "5"}), (0, 0), "sysctls"),
        (flavor(extra_specs={"quota:disk_read_iops_sec": "5"}), (0, 0), "no device"),
        (flavor(extra_specs={"quota:cpu_period": "5"}), (0, 0), "quota:cpu_period"),
        (flavor(ephemeral_gb=1), (0, 0), "an ephemeral disk"),
    ],
)
def test_refused_before_anything_changes(
    server: Any,
    migrate: Any,
    enforcement: FakeEnforcement,
    new: objects.Flavor,
    used: tuple[int, int],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = dict(enforcement.kept)
    enforcement.used_memory, enforcement.used_disk = used
    with pytest.raises(nova_exception.InstanceFaultRollback) as raised:
        migrate(new)
    message = raised.value.inner_exception.format_message()
    assert words in message
    assert len(message) <= 255
    assert enforcement.kept == before
    fakes.check_one_warning(caplog, server.uuid, words)


@pytest.mark.parametrize(
    ("new", "sized", "words"),
    [
        (2, False, "can't be changed from 1 GiB to 2 GiB"),
        (0, True, "can't be changed from 1 GiB to no limit"),
        (1, True, "uses 1536 MiB of its disk, more than the 1024 MiB"),
    ],
)
def test_refused_disks(
    driver: Any,
    server: Any,
    migrate: Any,
    enforcement: FakeEnforcement,
    new: int,
    sized: bool,
    words: str,
) -> None:
    driver._services.sized_disks = True
    enforcement.resizes_disks, enforcement.used_disk = sized, 1536 * MIB
    if "MiB" in words:
        server.flavor.root_gb = 3
    with pytest.raises(nova_exception.InstanceFaultRollback, match=words):
        migrate(flavor(root_gb=new))
    assert enforcement.disks == {}


def test_a_disk_grows(driver: Any, server: Any, migrate: Any, enforcement: FakeEnforcement) -> None:
    driver._services.sized_disks = enforcement.resizes_disks = True
    migrate(flavor(root_gb=5))
    assert list(enforcement.disks.values()) == [5 << 30]


def test_a_failure_puts_the_old_limits_back(
    driver: Any, migrate: Any, enforcement: FakeEnforcement, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apply_then_fail(found: Any, size: int) -> None:
        if size == 5 << 30:
            assert kept(enforcement) == (512, 400_000)
            raise exception.LimitsNotKept(reason="the disk fails")

    driver._services.sized_disks = enforcement.resizes_disks = True
    monkeypatch.setattr(enforcement, "resize_disk", apply_then_fail)
    with pytest.raises(nova_exception.InstanceFaultRollback) as raised:
        migrate(flavor(root_gb=5))
    assert "the disk fails" in str(raised.value.inner_exception)
    assert kept(enforcement) == (256, 200_000)


def test_the_last_step_failing_puts_the_old_limits_back(
    driver: Any, server: Any, network_info: Any, enforcement: FakeEnforcement
) -> None:
    server.old_flavor, server.flavor = server.flavor, flavor()
    enforcement.broken = lambda limits: limits.memory_bytes == 512 * MIB
    with pytest.raises(nova_exception.InstanceFaultRollback):
        driver.finish_migration(
            None, None, server, SAME_HOST, network_info, None, True, {}, None, True
        )
    assert kept(enforcement) == (256, 200_000)


def test_a_stopped_server_stays_stopped(
    driver: Any, server: Any, migrate: Any, engine: FakeEngine, enforcement: FakeEnforcement
) -> None:
    driver.power_off(server)
    engine.calls.clear()
    enforcement.used_memory = 1000 * MIB
    migrate(flavor(memory_mb=64))
    assert kept(enforcement)[0] == 64
    assert engine.calls == []


@pytest.mark.parametrize("same", [True, False])
def test_a_revert_destroys_only_what_another_host_has(
    driver: Any,
    server: Any,
    network_info: Any,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    same: bool,
) -> None:
    server.task_state = task_states.RESIZE_REVERTING
    server.migration_context = objects.MigrationContext(migration_id=5)
    monkeypatch.setattr(
        objects.Migration,
        "get_by_id_and_instance",
        lambda *_: SimpleNamespace(is_same_host_resize=same),
    )
    driver.destroy(None, server, network_info, None, True)
    assert bool(engine.containers) is same


def test_a_revert_nobody_knows_of_destroys_nothing(
    driver: Any, server: Any, network_info: Any, engine: FakeEngine
) -> None:
    server.task_state = task_states.RESIZE_REVERTING
    with pytest.raises(nova_exception.NovaException):
        driver.destroy(None, server, network_info, None, True)
    assert engine.containers


@pytest.mark.parametrize(("used", "restarted"), [(0, False), (300 * MIB, True)])
def test_revert(
    driver: Any,
    server: Any,
    migrate: Any,
    network_info: Any,
    engine: FakeEngine,
    enforcement: FakeEnforcement,
    used: int,
    restarted: bool,
) -> None:
    migrate(flavor())
    enforcement.used_memory = used
    # nova-compute calls this when it starts, and then again.
    for _ in range(2):
        driver.finish_revert_migration(None, server, network_info, HERE, None, True)
        enforcement.used_memory = 0
    assert kept(enforcement) == (256, 200_000)
    assert driver.get_info(server).state == power_state.RUNNING
    assert bool(engine.calls) is restarted


@pytest.mark.parametrize("broken", [False, True])
def test_limits_are_set_when_nova_compute_starts(
    driver: Any, server: Any, network_info: Any, enforcement: FakeEnforcement, broken: bool
) -> None:
    enforcement.kept.clear()
    enforcement.broken = lambda _: broken
    driver.plug_vifs(server, network_info)
    assert bool(enforcement.kept) is not broken


def test_limits_are_set_at_every_start(
    driver: Any, server: Any, network_info: Any, enforcement: FakeEnforcement
) -> None:
    for start in (
        lambda: driver.reboot(None, server, network_info, "HARD"),
        lambda: (driver.power_off(server), driver.power_on(None, server, network_info)),
        lambda: (
            driver.power_off(server),
            driver.resume_state_on_host_boot(None, server, network_info, None),
        ),
    ):
        enforcement.kept.clear()
        start()
        assert kept(enforcement) == (256, 200_000)


@pytest.mark.parametrize(("userns", "passes"), [("host", True), ("own", False)])
def test_a_server_of_the_time_when_nesting_gave_the_power_of_the_hosts_root(
    server: Any, migrate: Any, userns: str, passes: bool
) -> None:
    server.flavor.extra_specs = {"docker:nesting": "true", "docker:userns": userns}
    new = flavor(extra_specs={"docker:nesting": "host"})
    if passes:
        migrate(new)
    else:
        with pytest.raises(nova_exception.InstanceFaultRollback, match="differ in capabilities"):
            migrate(new)


@pytest.mark.parametrize(
    ("asked", "userns", "passes"),
    [
        ({"docker:nesting": "true"}, "host", False),
        ({"docker:nesting": "true"}, "own", True),
        ({"docker:nesting": "host"}, "host", True),
        ({"docker:capabilities": "SYS_ADMIN"}, "host", False),
        ({"docker:capabilities": "SYS_ADMIN"}, "own", True),
    ],
)
def test_power_that_needs_a_user_namespace(
    driver: Any,
    instance: Any,
    image_meta: Any,
    network_info: Any,
    asked: dict[str, str],
    userns: str,
    passes: bool,
) -> None:
    instance.flavor.extra_specs = {**asked, "docker:userns": userns}

    def spawn() -> None:
        driver.spawn(None, instance, image_meta, [], None, {}, network_info=network_info)

    if passes:
        spawn()
    else:
        with pytest.raises(exception.InvalidLimits, match="needs a user namespace"):
            spawn()
