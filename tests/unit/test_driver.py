# SPDX-License-Identifier: Apache-2.0
import copy
import os
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import os_resource_classes as orc
import oslo_messaging
import pytest
from nova import exception as nova_exception
from nova import objects
from nova.compute import power_state, resource_tracker, task_states, vm_states
from nova.compute import provider_tree as placement
from nova.virt import driver as nova_driver
from oslo_privsep import comm, daemon

from novadocker import exception, naming
from novadocker.linux import cgroup
from novadocker.linux.namespaces import IdMaps
from novadocker.virt.docker.containers import freeze, servers
from novadocker.virt.docker.host.user_namespaces import UserNamespaces
from novadocker.virt.docker.limits import disk
from novadocker.virt.docker.migration.transports import registry
from novadocker.virt.docker.model import Container, ContainerSpec, EngineInfo, Mount
from tests import waiting
from tests.unit import fakes
from tests.unit.fakes import (
    FakeDrives,
    FakeEnforcement,
    FakeEngine,
    FakeGuestFiles,
    FakeHost,
    FakeNetwork,
    FakeVirtAPI,
)

NODE = "host1"


@pytest.fixture
def spawn(driver: Any, instance: Any, image_meta: Any, network_info: Any) -> Any:
    def call(**kwargs: Any) -> None:
        driver.spawn(
            None, instance, image_meta, [], None, {}, **{"network_info": network_info, **kwargs}
        )

    return call


# -- spawn and destroy --------------------------------------------------------------------------


def test_an_image_with_an_owner_without_an_id(
    driver: Any, spawn: Any, instance: Any, network: FakeNetwork, fake_host: FakeHost
) -> None:
    fake_host.high_owner = "srv/file", 70000
    fake_host.user_namespaces = UserNamespaces(True, range(65536, 131072))
    driver.init_host(NODE)
    with pytest.raises(nova_exception.ImageUnacceptable, match=r"/srv/file .* group 70000"):
        spawn()
    assert network.own_ids == {}
    instance.flavor.extra_specs = {"docker:userns": "host"}
    spawn()


def test_network_of_a_container_with_users_of_its_own(
    driver: Any, spawn: Any, instance: Any, network: FakeNetwork, fake_host: FakeHost
) -> None:
    ids = IdMaps(users=((0, 1000, 5),), groups=((0, 2000, 6),))
    fake_host.id_maps = ids
    driver.init_host(NODE)
    spawn()
    # The owner is set before the wiring, because otherwise the host would own the namespace.
    assert network.owned == {instance.uuid: (ids.users, ids.groups)}


def test_spawn(
    spawn: Any, engine: FakeEngine, network: FakeNetwork, virtapi: FakeVirtAPI, instance: Any
) -> None:
    spawn()
    name = f"nova-{instance.uuid}"
    assert engine.calls == [
        ("create", name),
        ("start", f"id-{name}"),
    ]
    assert network.wired == {instance.uuid}
    assert network.bound == {f"id-{name}": instance.uuid}
    assert len(virtapi.awaited) == 1
    assert network.announced == network.completed == [instance.uuid]
    assert b"10.0.0.5\tweb-1" in network.etc_files["hosts"]
    assert network.etc_files["resolv.conf"].endswith(b"nameserver 10.0.0.2\n")


def test_spawn_puts_injected_files(
    driver: Any,
    instance: Any,
    image_meta: Any,
    network_info: Any,
    engine: FakeEngine,
    network: FakeNetwork,
) -> None:
    files = [("/etc/motd", b"hello")]
    driver.spawn(None, instance, image_meta, files, None, {}, network_info=network_info)
    assert engine.files == {"/etc/motd": b"hello"}
    assert "hosts" in network.etc_files


def test_only_the_first_start_writes_files(
    driver: Any, spawn: Any, instance: Any, network_info: Any, network: FakeNetwork
) -> None:
    instance.key_data = "ssh-rsa A"
    spawn()
    assert network.login is not None
    assert network.login["keys"] == b"ssh-rsa A\n"
    driver.reboot(None, instance, network_info, "HARD")
    assert network.etc_files == {}
    assert network.login is None


def test_spawn_refuses_an_image_with_too_many_volumes(
    spawn: Any, engine: FakeEngine, network: FakeNetwork, fake_host: FakeHost
) -> None:
    volumes = tuple(f"/v{number}" for number in range(300))
    fake_host.images.image = replace(fake_host.images.image, volumes=volumes)
    with pytest.raises(exception.InvalidImage, match="has 300 volumes"):
        spawn()
    assert engine.calls == []
    assert network.wired == set()


def test_spawn_demands_the_owners_certificates(
    spawn: Any, instance: Any, fake_host: FakeHost
) -> None:
    instance.trusted_certs = objects.TrustedCerts(ids=["c1"])
    spawn()
    assert fake_host.images.trusted == [instance.trusted_certs]


@pytest.mark.parametrize(("root_gb", "most"), [(5, 5 << 30), (0, 0)])
def test_the_flavors_disk_bounds_what_an_image_unpacks_to(
    spawn: Any, instance: Any, fake_host: FakeHost, root_gb: int, most: int
) -> None:
    instance.flavor.root_gb = root_gb
    spawn()
    assert fake_host.images.most == [most]


def test_spawn_with_environment_variables(
    spawn: Any, options: Any, engine: FakeEngine, network: FakeNetwork, instance: Any
) -> None:
    instance.system_metadata = {"image_docker_env_COLOUR": "blue"}
    instance.metadata = {"docker_env_COLOUR": "red"}
    with pytest.raises(exception.StartFailed, match="docker_env_COLOUR is not allowed"):
        spawn()
    assert engine.calls == []
    assert network.wired == set()
    options(group="docker", environment_from_metadata=True)
    spawn()
    # cloud-init finds OpenStack by product_name.
    assert engine.specs[f"nova-{instance.uuid}"].environment == {
        "COLOUR": "red",
        "product_name": "OpenStack Nova",
    }


def test_a_refused_image_is_one_line_of_the_log(
    spawn: Any, instance: Any, fake_host: FakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    fake_host.images.image = replace(fake_host.images.image, volumes=("/v",) * 300)
    caplog.set_level("WARNING")
    with pytest.raises(exception.InvalidImage) as caught:
        spawn()
    (line,) = caplog.records
    assert "has 300 volumes" in line.getMessage()
    # A formatter of another test may have replaced the instance by its name in brackets.
    assert instance.uuid in str(vars(line)["instance"])
    shown = "".join(traceback.format_exception(caught.value))
    assert "novadocker/virt/docker/operations/build.py" not in shown
    # oslo.messaging logs this exception of the manager without a traceback.
    assert isinstance(caught.value, oslo_messaging.ExpectedException)
    assert caught.value.exc_info[1] is caught.value


def test_a_fault_of_the_host_keeps_its_traceback(spawn: Any, network: FakeNetwork) -> None:
    network.failure = exception.PlugFailed(port_id="p", reason="no bridge")
    with pytest.raises(exception.PlugFailed) as caught:
        spawn()
    shown = "".join(traceback.format_exception(caught.value))
    assert "novadocker/virt/docker/operations/build.py" in shown


def test_spawn_powered_off(spawn: Any, engine: FakeEngine) -> None:
    spawn(power_on=False)
    assert [call[0] for call in engine.calls] == ["create"]


def test_spawn_without_ports(spawn: Any, virtapi: FakeVirtAPI, engine: FakeEngine) -> None:
    spawn(network_info=None)
    assert virtapi.awaited == []
    assert engine.calls[-1][0] == "start"


@pytest.mark.parametrize(
    ("fault", "expected", "text"),
    [
        ("plug", exception.PlugFailed, "no bridge"),
        ("event", exception.StartFailed, "did not report"),
        ("command", exception.StartFailed, "exit status 3"),
    ],
)
def test_a_failed_spawn_leaves_nothing(
    spawn: Any,
    engine: FakeEngine,
    network: FakeNetwork,
    virtapi: FakeVirtAPI,
    fault: str,
    expected: type[Exception],
    text: str,
) -> None:
    if fault == "plug":
        network.failure = exception.PlugFailed(port_id="p", reason="no bridge")
    elif fault == "event":
        virtapi.outcome = "late"
    else:
        engine.exit_code = 3
    with pytest.raises(expected, match=text):
        spawn()
    assert engine.containers == {}
    assert network.wired == set()
    assert network.bound == {}


def test_a_start_that_hangs_is_tried_on_another_host(
    spawn: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = exception.ContainerHangs(operation="to start the container", seconds=60)
    monkeypatch.setattr(engine, "start_container", Mock(side_effect=hangs))
    with pytest.raises(exception.ContainerHangs) as caught:
        spawn()
    # Nova's manager gives up a build after this exception.
    assert not isinstance(caught.value, nova_exception.BuildAbortException)


def test_the_console_log_of_a_container_that_hangs(
    driver: Any, spawn: Any, instance: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn()
    hangs = exception.ContainerHangs(operation="to inspect a container", seconds=15)
    monkeypatch.setattr(engine, "inspect_container", Mock(side_effect=hangs))
    with pytest.raises(nova_exception.ConsoleNotAvailable) as caught:
        driver.get_console_output(None, instance)
    # Nova's API shows this text with HTTP status 404.
    assert "hangs in the Docker engine" in caught.value.format_message()


@pytest.mark.parametrize("status", ["running", "exited"])
def test_the_state_of_a_container_that_hangs(
    driver: Any,
    spawn: Any,
    instance: Any,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
) -> None:
    """nova-compute asks for each instance when it starts, and ends with the exception."""
    spawn()
    instance.vm_state, instance.task_state = vm_states.ACTIVE, None
    engine._set(f"nova-{instance.uuid}", status)
    hangs = exception.ContainerHangs(operation="to inspect a container", seconds=15)
    monkeypatch.setattr(engine, "inspect_container", Mock(side_effect=hangs))
    for use_cache in (True, False):
        assert driver.get_info(instance, use_cache).state == servers.POWER_STATES[status]
    engine.containers.clear()
    with pytest.raises(nova_exception.InstanceNotFound):
        driver.get_info(instance, use_cache=False)


def test_a_spawn_fails_with_the_rates_of_its_ports(
    spawn: Any, engine: FakeEngine, network: FakeNetwork, enforcement: FakeEnforcement
) -> None:
    enforcement.broken_rates = True
    with pytest.raises(exception.LimitsNotKept):
        spawn()
    assert engine.containers == {}
    assert network.wired == set()


def test_a_failed_spawn_unwires_though_the_engine_died(
    spawn: Any, engine: FakeEngine, network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "start_container", lambda _: setattr(engine, "away", True))
    with pytest.raises(exception.EngineUnavailable):
        spawn()
    assert network.wired == set()


def test_a_container_the_engine_could_not_remove_goes_when_it_is_back(
    driver: Any, spawn: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "start_container", lambda _: setattr(engine, "away", True))
    with pytest.raises(exception.EngineUnavailable):
        spawn()
    assert len(engine.containers) == 1
    driver.update_provider_tree(tree(), NODE)
    engine.away = False
    driver.update_provider_tree(tree(), NODE)
    assert engine.containers == {}


@pytest.mark.parametrize(
    "failure",
    [
        exception.LimitsNotKept(reason="the kernel refuses"),
        comm.PrivsepTimeout("3600 s"),
        daemon.FailedToDropPrivileges("no answer"),
        oslo_messaging.MessagingTimeout("no reply"),
    ],
)
def test_a_failed_step_of_the_sweep_does_not_stop_the_others(
    driver: Any,
    fake_host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: Exception,
) -> None:
    def refuse(_container: str) -> None:
        raise exception.EngineUnavailable(url="fake", reason="it has just died")

    def rescan(_info: EngineInfo) -> None:
        raise failure

    def lose_limits() -> None:
        fake_host.enforcement.sweeps += 1
        raise failure

    monkeypatch.setattr(disk, "restore_quotas", rescan)
    monkeypatch.setattr(fake_host.engine, "remove_container", refuse)
    monkeypatch.setattr(fake_host.enforcement, "sweep", lose_limits)
    driver._services.abandoned.remove("id", lambda: None)
    found = tree()
    driver.update_provider_tree(found, NODE)
    assert fake_host.enforcement.sweeps == 1
    assert found.data(NODE).inventory[orc.VCPU]["reserved"] == 0
    assert "Failed to remove the containers of failed builds: " in caplog.text
    assert f"Failed to keep the limits of disks: {failure}" in caplog.text
    assert f"Failed to keep the limits of servers: {failure}" in caplog.text


@pytest.mark.parametrize(("status", "left"), [("created", 0), ("exited", 1)])
def test_a_creation_without_an_answer(
    driver: Any,
    spawn: Any,
    engine: FakeEngine,
    instance: Any,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
    left: int,
) -> None:
    def create(container: Any) -> str:
        engine.add(container.name, container.labels, status)
        raise exception.EngineUnavailable(url="fake", reason="died")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "create_container", create)
        with pytest.raises(exception.EngineUnavailable):
            spawn()
    driver.update_provider_tree(tree(), NODE)
    assert len(engine.containers) == left


def test_the_next_build_on_the_host_is_not_in_the_way_of_a_lost_creation(
    spawn: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, driver: Any
) -> None:
    def create(container: Any) -> str:
        engine.add(container.name, container.labels)
        raise exception.EngineUnavailable(url="fake", reason="died")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "create_container", create)
        with pytest.raises(exception.EngineUnavailable):
            spawn()
    spawn()
    driver.update_provider_tree(tree(), NODE)
    assert [c.status for c in engine.containers.values()] == ["running"]


def test_spawn_never_removes_a_container_that_was_there(
    spawn: Any, engine: FakeEngine, instance: Any
) -> None:
    engine.add(f"nova-{instance.uuid}", {})
    with pytest.raises(exception.EngineError, match="name in use"):
        spawn()
    assert len(engine.containers) == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda i: setattr(i.flavor, "ephemeral_gb", 1), "an ephemeral disk"),
    ],
)
def test_spawn_refuses_what_it_cannot_give(
    spawn: Any, instance: Any, engine: FakeEngine, change: Any, text: str
) -> None:
    change(instance)
    with pytest.raises(exception.StartFailed, match=text):
        spawn()
    assert engine.calls == []


def test_live_migration_is_refused_as_nova_wants_it(driver: Any, instance: Any) -> None:
    with pytest.raises(nova_exception.MigrationPreCheckError, match="no live") as caught:
        driver.check_can_live_migrate_destination(None, instance, {}, {})
    # The conductor cannot deserialize a subclass of this exception.
    assert caught.type is nova_exception.MigrationPreCheckError


def test_destroy(
    driver: Any, spawn: Any, instance: Any, network_info: Any, fake_host: FakeHost
) -> None:
    spawn()
    driver.destroy(None, instance, network_info)
    driver.destroy(None, instance, network_info)
    assert fake_host.engine.containers == {}
    assert fake_host.load_averages.deleted[0] == instance.uuid
    assert fake_host.network.wired == set()


def test_destroy_keeps_the_network_while_the_engine_is_away(
    driver: Any, spawn: Any, instance: Any, network_info: Any, engine: Any, network: Any
) -> None:
    spawn()
    engine.away = True
    with pytest.raises(exception.EngineUnavailable):
        driver.destroy(None, instance, network_info)
    assert network.wired == {instance.uuid}


def test_unplug_removes_the_namespace_though_a_port_failed(
    driver: Any, spawn: Any, instance: Any, network_info: Any, network: FakeNetwork
) -> None:
    spawn()
    network.unplug_failure = exception.PlugFailed(port_id="p", reason="switch away")
    with pytest.raises(exception.PlugFailed):
        driver.unplug_vifs(instance, network_info)
    assert network.wired == set()


def test_cleanup_can_leave_the_vifs(
    driver: Any, spawn: Any, instance: Any, network_info: Any, network: FakeNetwork
) -> None:
    spawn()
    driver.cleanup(None, instance, network_info, destroy_vifs=False)
    assert network.wired == {instance.uuid}


# -- power --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reboot_type", "signals"), [("SOFT", ["SIGTERM"]), ("HARD", ["SIGKILL"])])
def test_reboot(
    driver: Any,
    spawn: Any,
    instance: Any,
    network_info: Any,
    engine: FakeEngine,
    network: FakeNetwork,
    reboot_type: str,
    signals: list[str],
) -> None:
    spawn()
    engine.calls.clear()
    network.wired.clear()
    network.bound.clear()
    driver.reboot(None, instance, network_info, reboot_type)
    assert [call[-1] for call in engine.calls if call[0] == "signal"] == signals
    assert engine.calls[-1][0] == "start"
    assert network.wired == {instance.uuid}
    assert network.bound


def test_power_cycle(
    driver: Any, spawn: Any, instance: Any, network_info: Any, network: FakeNetwork
) -> None:
    spawn()
    driver.power_off(instance, 60, 10)
    assert network.silent == {instance.uuid}
    assert driver.get_info(instance, use_cache=False).state == power_state.SHUTDOWN
    driver.power_off(instance, 0, 0)
    driver.power_on(None, instance, network_info)
    assert driver.get_info(instance, use_cache=False).state == power_state.RUNNING
    assert network.silent == set()
    assert network.announced == [instance.uuid] * 2


def test_a_stop_sends_one_signal_whatever_interval_nova_asks_for(
    driver: Any, spawn: Any, instance: Any, engine: FakeEngine
) -> None:
    engine.stubborn = frozenset({"SIGTERM"})
    spawn()
    driver.power_off(instance, 0.1, 0.01)
    signals = [call[-1] for call in engine.calls if call[0] == "signal"]
    assert signals == ["SIGTERM", "SIGKILL"]


@pytest.mark.parametrize(("stopped", "silent"), [(True, True), (False, False)])
def test_plugging_at_start_up_keeps_a_stopped_server_silent(
    driver: Any,
    spawn: Any,
    instance: Any,
    network_info: Any,
    network: FakeNetwork,
    stopped: bool,
    silent: bool,
) -> None:
    spawn()
    if stopped:
        driver.power_off(instance)
    driver.plug_vifs(instance, network_info)
    assert network.wired == {instance.uuid}
    assert bool(network.silent) is silent


def test_power_on_never_removes_a_server_that_fails(
    driver: Any, spawn: Any, instance: Any, network_info: Any, engine: Any, network: Any
) -> None:
    spawn()
    driver.power_off(instance)
    engine.exit_code = 1
    with pytest.raises(exception.EngineError, match="exit status 1"):
        driver.power_on(None, instance, network_info)
    network.failure = exception.PlugFailed(port_id="p", reason="no bridge")
    with pytest.raises(exception.PlugFailed):
        driver.reboot(None, instance, network_info, "HARD")
    assert len(engine.containers) == 1


@pytest.mark.parametrize("stop", ["pause", "suspend"])
def test_freeze(
    driver: Any, spawn: Any, instance: Any, network_info: Any, network: FakeNetwork, stop: str
) -> None:
    spawn()
    if stop == "pause":
        driver.pause(instance)
    else:
        driver.suspend(None, instance)
    assert driver.get_info(instance, use_cache=False).state == power_state.PAUSED
    # The kernel would answer pings for the server, so its port must be down.
    assert network.silent == {instance.uuid}
    driver.plug_vifs(instance, network_info)
    assert network.silent == {instance.uuid}
    if stop == "pause":
        driver.unpause(instance)
    else:
        driver.resume(None, instance, network_info)
    assert driver.get_info(instance, use_cache=False).state == power_state.RUNNING
    assert network.silent == set()


def test_resume_of_a_server_that_lost_its_processes(
    driver: Any, spawn: Any, instance: Any, network_info: Any, network: FakeNetwork
) -> None:
    spawn()
    driver.power_off(instance)
    network.wired.clear()
    driver.resume_state_on_host_boot(None, instance, network_info, None)
    assert driver.get_info(instance, use_cache=False).state == power_state.RUNNING
    assert network.wired == {instance.uuid}


# -- files and passwords in a server -------------------------------------------------------------


def test_set_admin_password(
    driver: Any,
    spawn: Any,
    instance: Any,
    network: FakeNetwork,
    guest_files: FakeGuestFiles,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    instance.system_metadata = {"image_os_admin_user": "web"}
    spawn()
    driver.set_admin_password(instance, "s3cret")
    assert guest_files.passwords == ["web"]
    driver.power_off(instance)
    driver.set_admin_password(instance, "s3cret")
    assert guest_files.passwords == ["web"]
    assert network.login is not None
    assert network.login["user"] == "web"
    assert network.login["keys"] == b""
    assert "s3cret" not in caplog.text + repr(network.login)


def test_config_drive(
    driver: Any,
    instance: Any,
    image_meta: Any,
    network_info: Any,
    engine: FakeEngine,
    drives: FakeDrives,
) -> None:
    instance.config_drive = "True"
    built = {"openstack/latest/user_data": b"\0"}
    drives.content = (built, b"")
    files = [("/etc/motd", b"hello")]
    driver.spawn(None, instance, image_meta, files, "pw", {}, network_info=network_info)
    assert drives.built == [(instance, network_info, files, "pw")]
    assert drives.written == {instance.uuid: built}
    folder = f"/drives/{NODE}/{instance.uuid}"
    assert engine.specs[f"nova-{instance.uuid}"].mounts == (
        Mount(folder, "/config-2"),
        Mount(folder, "/var/lib/cloud/seed/config_drive"),
    )
    driver.destroy(None, instance, network_info, destroy_disks=False)
    assert drives.written
    driver.destroy(None, instance, network_info)
    assert drives.written == {}
    engine.exit_code = 1
    with pytest.raises(exception.StartFailed):
        driver.spawn(None, instance, image_meta, files, "pw", {}, network_info=network_info)
    assert drives.written == {}


def test_config_drive_that_is_a_device(
    driver: Any,
    spawn: Any,
    instance: Any,
    network_info: Any,
    engine: FakeEngine,
    drives: FakeDrives,
) -> None:
    instance.config_drive = "True"
    instance.system_metadata = {"image_img_config_drive_device": "true"}
    drives.content = ({}, b"image")
    spawn()
    assert engine.specs[f"nova-{instance.uuid}"].devices == (
        Mount(f"/links/{instance.uuid}", "/dev/disk/by-label/config-2"),
    )
    assert drives.attached == {instance.uuid}
    driver.power_off(instance)
    assert drives.attached == set()
    driver.power_on(None, instance, network_info)
    assert drives.attached == {instance.uuid}
    driver.destroy(None, instance, network_info)
    assert (drives.attached, drives.written) == (set(), {})
    engine.exit_code = 1
    with pytest.raises(exception.StartFailed):
        spawn()
    assert (drives.attached, drives.written) == (set(), {})


def test_a_device_stays_attached_while_the_engine_does_not_answer(
    driver: Any,
    spawn: Any,
    instance: Any,
    engine: FakeEngine,
    drives: FakeDrives,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The container of a failed build may still run, and may have detached its device itself."""

    instance.config_drive = "True"
    instance.system_metadata = {"image_img_config_drive_device": "true"}
    drives.content = ({}, b"image")
    monkeypatch.setattr(engine, "start_container", lambda _: setattr(engine, "away", True))
    with pytest.raises(exception.EngineUnavailable):
        spawn()
    assert drives.attached == {instance.uuid}
    engine.away = False
    driver._services.abandoned.sweep()
    assert drives.attached == set()


def test_no_config_drive_unless_asked(
    spawn: Any, engine: FakeEngine, drives: FakeDrives, instance: Any
) -> None:
    spawn()
    assert drives.written == {}
    assert engine.specs[f"nova-{instance.uuid}"].mounts == ()


def test_no_password_for_an_image_without_accounts(
    driver: Any, spawn: Any, instance: Any, guest_files: FakeGuestFiles
) -> None:
    spawn()
    guest_files.accounts = False
    with pytest.raises(nova_exception.SetAdminPasswdNotSupported):
        driver.set_admin_password(instance, "s3cret")


# -- listing servers ------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "expected"), servers.POWER_STATES.items())
def test_power_states(
    driver: Any, spawn: Any, instance: Any, engine: FakeEngine, status: str, expected: int
) -> None:
    spawn()
    engine._set(f"nova-{instance.uuid}", status)
    assert driver.get_info(instance).state == expected


def test_a_word_the_engine_never_used_before(
    driver: Any, spawn: Any, instance: Any, engine: FakeEngine
) -> None:
    spawn()
    engine._set(f"nova-{instance.uuid}", "hibernating")
    assert driver.get_info(instance).state == power_state.NOSTATE


@pytest.mark.parametrize("use_cache", [True, False])
def test_an_engine_that_is_away_is_no_missing_server(
    driver: Any, instance: Any, engine: FakeEngine, use_cache: bool
) -> None:
    engine.away = True
    with pytest.raises(nova_exception.VirtDriverNotReady):
        driver.get_info(instance, use_cache=use_cache)
    engine.away = False
    with pytest.raises(nova_exception.InstanceNotFound):
        driver.get_info(instance, use_cache=use_cache)


def test_foreign_containers_are_not_listed_nor_touched(
    driver: Any, spawn: Any, instance: Any, engine: FakeEngine
) -> None:
    spawn()
    forged = {naming.LABEL_UUID: "another", naming.LABEL_SCHEMA: "1", naming.LABEL_NAME: "x"}
    engine.add("foreign", forged, "running")
    engine.add("plain", {}, "running")
    assert driver.list_instances() == [instance.name]
    assert driver.list_instance_uuids() == [instance.uuid]
    assert driver.get_num_instances() == 1
    assert driver.instance_exists(instance)


@pytest.fixture
def report(driver: Any) -> Callable[[], None]:
    """Return a function that reports the host's resources, as nova-compute does every minute."""

    def call() -> None:
        tree = placement.ProviderTree()
        tree.new_root(NODE, "0fb0e8c6-0d6c-4a6c-9b1f-1f1f1f1f1f1f")
        driver.update_provider_tree(tree, NODE)

    return call


@pytest.fixture
def bare(
    spawn: Any,
    instance: Any,
    engine: FakeEngine,
    drives: FakeDrives,
    fake_host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
) -> list[Any]:
    """Delete a server's container behind Nova's back; return the instances deleted in Nova."""
    deleted: list[Any] = []
    monkeypatch.setattr(
        fake_host.nova_records,
        "deleted",
        lambda uuids: [found for found in deleted if found.uuid in uuids],
    )
    drives.content = ({"a": b"b"}, b"")
    instance.config_drive, instance.host = "True", NODE
    spawn()
    engine.remove_container(f"nova-{instance.uuid}")
    return deleted


@pytest.mark.parametrize("rebooted", [False, True])
def test_remains_of_a_deleted_server_are_deleted(
    report: Callable[[], None],
    bare: list[Any],
    instance: Any,
    network: FakeNetwork,
    drives: FakeDrives,
    options: Any,
    rebooted: bool,
) -> None:
    if rebooted:
        network.wired.clear()
    report()
    assert drives.written.keys() == {instance.uuid}
    bare.append(instance)
    options(running_deleted_instance_action="log")
    report()
    assert drives.written.keys() == {instance.uuid}
    options(running_deleted_instance_action="reap")
    report()
    assert drives.written == {}
    assert network.wired == set()
    assert network.ports == []


def test_remains_are_not_listed_as_servers(driver: Any, bare: list[Any]) -> None:
    # Nova refuses to start a new nova-compute on a host with servers.
    assert driver.list_instance_uuids() == []


@pytest.mark.parametrize("failure", [OSError("busy"), comm.PrivsepTimeout("60 s")])
def test_remains_that_cannot_be_read_or_deleted(
    report: Callable[[], None],
    bare: list[Any],
    instance: Any,
    drives: FakeDrives,
    network: FakeNetwork,
    failure: Exception,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: str) -> list[str]:
        raise failure

    other = copy.deepcopy(instance)
    other.uuid = "11111111-2222-3333-4444-555555555555"
    drives.written[other.uuid] = {}
    bare += [other, instance]
    with monkeypatch.context() as patch:
        patch.setattr(drives, "list_drives", fail)
        report()
    assert f"Failed to list the config drives of this host: {failure}" in caplog.text
    assert network.wired == set()
    delete = drives.delete_drive
    monkeypatch.setattr(
        drives, "delete_drive", lambda *names: fail() if other.uuid in names else delete(*names)
    )
    drives.written[instance.uuid] = {}
    report()
    assert drives.written.keys() == {other.uuid}
    assert f"Failed to delete the remains of an instance: {failure}" in caplog.text


def test_images_of_interrupted_snapshots_are_deleted_after_the_start(
    driver: Any,
    report: Callable[[], None],
    instance: Any,
    fake_host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    instance.task_state = task_states.IMAGE_UPLOADING
    monkeypatch.setattr(objects.Instance, "save", lambda _self, expected_task_state: None)
    monkeypatch.setattr(
        fake_host.nova_records, "cut_off", lambda host, _events: [instance] if host == NODE else []
    )
    driver.init_host(NODE)
    assert fake_host.cut_off_images.swept == []
    report()
    waiting.until(lambda: fake_host.cut_off_images.swept == [instance], 20)


def test_a_glance_that_hangs_holds_up_no_sweep(
    driver: Any, report: Callable[[], None], fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[None] = []
    answered = threading.Event()

    def sweep() -> None:
        begun.append(None)
        assert answered.wait(20)

    monkeypatch.setattr(fake_host.cut_off_images, "sweep", sweep)
    for _ in range(2):
        report()
        assert not answered.is_set()
    waiting.until(lambda: begun, 20)
    answered.set()
    assert len(begun) == 1


def test_a_name_of_ours_without_our_labels_is_not_ours(
    driver: Any, instance: Any, engine: FakeEngine
) -> None:
    engine.add(f"nova-{instance.uuid}", {}, "running")
    with pytest.raises(exception.ContainerLost):
        driver.power_off(instance)
    with pytest.raises(exception.ContainerLost):
        driver.power_on(None, instance, instance.get_network_info())
    assert engine.calls == []


def test_a_renamed_server_is_not_taken_for_stopped(
    driver: Any, spawn: Any, instance: Any, engine: FakeEngine, network_info: Any
) -> None:
    spawn()
    name = f"nova-{instance.uuid}"
    # Nova has rebuilt the server before, so the engine reported a deletion.
    driver._services.server_list.note_deleted(instance.uuid)
    driver.get_num_instances()
    engine.rename_container(name, "mine")
    with pytest.raises(exception.ContainerLost):
        driver.power_off(instance)
    instance.task_state = task_states.REBUILDING
    driver.power_off(instance)
    engine.rename_container("mine", name)
    driver.power_off(instance)
    assert [found.status for found in engine.containers.values()] == ["exited"]


def test_a_server_whose_container_was_deleted(
    driver: Any, spawn: Any, instance: Any, engine: FakeEngine, network_info: Any
) -> None:
    spawn()
    driver.get_info(instance)
    engine.remove_container(f"nova-{instance.uuid}")
    driver._services.server_list.note_deleted(instance.uuid)
    for use_cache in (True, False):
        assert driver.get_info(instance, use_cache).state == power_state.SHUTDOWN
    # Nova's manager takes InstanceNotFound of a rebuild for a deletion.
    driver.power_off(instance)
    for start in (
        lambda: driver.power_on(None, instance, network_info),
        lambda: driver.reboot(None, instance, network_info, "HARD"),
    ):
        with pytest.raises(exception.ContainerLost, match="server are lost"):
            start()
    driver.destroy(None, instance, network_info)
    spawn()
    assert driver.get_info(instance).state == power_state.RUNNING


def test_a_power_state_sync_asks_the_engine_once(
    driver: Any, spawn: Any, instance: Any, engine: FakeEngine
) -> None:
    spawn()
    engine.lists = 0
    driver.get_num_instances()
    for _ in range(100):
        driver.get_info(instance)
    assert engine.lists == 1


def test_a_power_state_sync_holds_up_no_boot(
    driver: Any, spawn: Any, instance: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def hang(_label: str) -> list[Container]:
        asked.set()
        assert answer.wait(60)
        return []

    monkeypatch.setattr(engine, "list_containers", hang)
    sync = threading.Thread(target=driver.get_num_instances, daemon=True)
    sync.start()
    assert asked.wait(60)
    boot = threading.Thread(target=spawn, daemon=True)
    boot.start()
    boot.join(30)
    booted = not boot.is_alive()
    answer.set()
    sync.join(60)
    assert booted
    assert engine.calls[-1][0] == "start"


# -- the host -------------------------------------------------------------------------------------


def test_init_host_needs_the_shim(driver: Any, engine: FakeEngine) -> None:
    engine.info_ = replace(fakes.INFO, runtimes={"runc": "runc"})
    with pytest.raises(exception.InvalidConfiguration, match="'novadocker'"):
        driver.init_host(NODE)


def test_init_host_accepts_containerds_image_store(driver: Any, engine: FakeEngine) -> None:
    # Engine 28 with the feature and "storage-driver": "overlay2" loads no image.
    engine.info_ = replace(fakes.INFO, containerd_store=True)
    with pytest.raises(exception.InvalidConfiguration, match="the snapshotter overlay2"):
        driver.init_host(NODE)
    engine.info_ = replace(engine.info_, storage_driver="overlayfs")
    driver.init_host(NODE)
    driver.cleanup_host(NODE)


HIDDEN = "5f9f2a0e-1a1d-4f0c-8a58-2f6f1f9b7c11"


def test_init_host_needs_the_former_storage_driver(
    driver: Any, engine: FakeEngine, fake_host: FakeHost
) -> None:
    fake_host.drivers = {HIDDEN: "overlay2"}
    engine.info_ = replace(fakes.INFO, containerd_store=True, storage_driver="overlayfs")
    with pytest.raises(exception.InvalidConfiguration) as refused:
        driver.init_host(NODE)
    for part in (HIDDEN, "uses the storage driver overlayfs", '"storage-driver": "overlay2"'):
        assert part in str(refused.value)
    engine.info_ = fakes.INFO
    driver.init_host(NODE)
    driver.cleanup_host(NODE)


@pytest.mark.parametrize("how", ["shown", "gone", "unanswered"])
def test_servers_that_are_not_hidden(
    driver: Any, engine: FakeEngine, fake_host: FakeHost, how: str
) -> None:
    """What an earlier storage driver left of them prevents no start."""
    fake_host.drivers = {HIDDEN: "btrfs"}
    if how == "shown":
        engine.add(
            naming.container_name(HIDDEN),
            {naming.LABEL_UUID: HIDDEN, naming.LABEL_SCHEMA: naming.SCHEMA},
            "running",
        )
    fake_host.nova_records.elsewhere = {HIDDEN} if how != "shown" else set()
    if how == "unanswered":
        fake_host.nova_records.failure = oslo_messaging.MessagingTimeout()
        with pytest.raises(exception.InvalidConfiguration, match=r"needed, .* \(docker rm\)"):
            driver.init_host(NODE)
        return
    driver.init_host(NODE)
    driver.cleanup_host(NODE)


def test_another_storage_driver_while_nova_compute_runs(
    driver: Any, engine: FakeEngine, fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine hides all servers, which the driver must not take for lost."""
    driver.init_host(NODE)
    fake_host.drivers = {HIDDEN: "overlay2"}
    swept: list[object] = []
    monkeypatch.setattr(driver._services, "sweep", lambda *given: swept.append(given))
    tree = placement.ProviderTree()
    tree.new_root(NODE, HIDDEN)
    engine.info_ = replace(fakes.INFO, containerd_store=True, storage_driver="overlayfs")
    driver.update_provider_tree(tree, NODE)
    assert swept == []
    assert "hides 1 servers" in str(fake_host.service_status.reports[-1])
    engine.info_ = fakes.INFO
    driver.update_provider_tree(tree, NODE)
    assert len(swept) == 1
    assert fake_host.service_status.reports[-1] is None


def test_init_host_needs_the_registrys_client(
    driver: Any, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "find_spec", {"www_authenticate": True}.get)
    driver.init_host(NODE)
    driver.cleanup_host(NODE)
    options(group="docker", transfer_registry="registry.example.com/moves")
    with pytest.raises(exception.InvalidConfiguration, match="packages python-dxf;"):
        driver.init_host(NODE)


def test_server_that_a_snapshot_left_frozen_goes_on(
    driver: Any, engine: FakeEngine, options: Any, tmp_path: Path
) -> None:
    options(instances_path=str(tmp_path))
    for name in ("frozen", "resting", "gone"):
        engine.add(name, {}, "paused")
    for name in ("frozen", "gone"):
        (tmp_path / f"{freeze.PREFIX}id-{name}").touch()
    engine.remove_container("gone")
    driver.init_host(NODE)
    assert engine.inspect_container("frozen").status == "running"
    assert engine.inspect_container("resting").status == "paused"
    assert not list(tmp_path.iterdir())


def test_a_freeze_that_the_engine_did_not_let_end(
    driver: Any, engine: FakeEngine, options: Any, tmp_path: Path
) -> None:
    options(instances_path=str(tmp_path))
    for name in ("left", "held"):
        engine.add(name, {}, "running")
    left, held = (engine.inspect_container(name) for name in ("left", "held"))
    with (
        pytest.raises(exception.EngineUnavailable),
        freeze.frozen(engine, left, tmp_path),
    ):
        engine.away = True
    engine.away = False
    assert engine.inspect_container("left").status == "paused"
    with freeze.frozen(engine, held, tmp_path):
        driver.update_provider_tree(tree(), NODE)
        assert engine.inspect_container("left").status == "running"
        assert engine.inspect_container("held").status == "paused"
    assert engine.inspect_container("held").status == "running"
    assert not list(tmp_path.glob("novadocker-*n-*"))


def test_available_resource(driver: Any) -> None:
    found = driver.get_available_resource(NODE)
    assert found["vcpus"] == 8
    assert found["memory_mb"] == 16384
    assert found["local_gb"] > 0
    assert found["hypervisor_type"] == "docker"
    assert found["hypervisor_version"] == 20010024
    assert found["hypervisor_hostname"] == NODE == driver.get_available_nodes()[0]
    assert found["supported_instances"] == [("x86_64", "docker", "exe")]


def failed_builds(driver: Any) -> int:
    """Return what Nova's resource tracker reports after it has counted three failed builds."""
    tracker = resource_tracker.ResourceTracker("host1", driver, Mock())
    for _ in range(3):
        tracker.build_failed(NODE)
    node = objects.ComputeNode()
    tracker._copy_resources(node, driver.get_available_resource(NODE))
    return int(node.stats["failed_builds"])


def test_only_builds_that_failed_by_the_host_are_counted(
    driver: Any,
    spawn: Any,
    engine: FakeEngine,
    network: FakeNetwork,
    monkeypatch: pytest.MonkeyPatch,
    options: Any,
) -> None:
    assert failed_builds(driver) == 0
    network.failure = nova_exception.NoMoreFixedIps(net="n1")
    with pytest.raises(nova_exception.NoMoreFixedIps):
        spawn()
    assert failed_builds(driver) == 0
    network.failure = None
    engine.exit_code = 3
    with pytest.raises(exception.RequestRefused):
        spawn()
    assert failed_builds(driver) == 0
    engine.exit_code = None
    with monkeypatch.context() as broken:
        error = exception.EngineError(operation="to start the container", reason="no runc")
        broken.setattr(engine, "start_container", Mock(side_effect=error))
        for number in (1, 2):
            with pytest.raises(exception.StartFailed, match="no runc"):
                spawn()
            assert failed_builds(driver) == number
        options("compute", consecutive_build_service_disable_threshold=0)
        assert failed_builds(driver) == 0
        options("compute", consecutive_build_service_disable_threshold=10)
        assert failed_builds(driver) == number
    spawn()
    assert failed_builds(driver) == 0


def tree() -> placement.ProviderTree:
    found = placement.ProviderTree()
    found.new_root(NODE, "5e0e6b29-1b4e-4d83-8a4e-3a57d9a6a0b2", generation=1)
    return found


def test_inventory(driver: Any, options: Any) -> None:
    options(
        cpu_allocation_ratio=4.0,
        reserved_host_cpus=1,
        reserved_host_memory_mb=512,
        reserved_host_disk_mb=1500,
    )
    found = tree()
    driver.update_provider_tree(found, NODE)
    inventory = found.data(NODE).inventory
    assert {name: row["reserved"] for name, row in inventory.items()} == {
        orc.VCPU: 1,
        orc.MEMORY_MB: 512,
        orc.DISK_GB: 2,
    }
    assert inventory[orc.VCPU]["total"] == inventory[orc.VCPU]["max_unit"] == 8
    assert inventory[orc.VCPU]["allocation_ratio"] == 4.0
    assert "CUSTOM_HYPERVISOR_DOCKER" in found.data(NODE).traits


def test_inventory_of_dedicated_cpus(driver: Any, options: Any) -> None:
    options("compute", cpu_shared_set="0-1", cpu_dedicated_set="2-7")
    options(cpu_allocation_ratio=4.0, reserved_host_cpus=1)
    driver.init_host(NODE)
    found = tree()
    driver.update_provider_tree(found, NODE)
    rows = found.data(NODE).inventory
    columns = ("total", "reserved", "allocation_ratio")
    assert [rows[orc.VCPU][column] for column in columns] == [2, 1, 4.0]
    assert [rows[orc.PCPU][column] for column in columns] == [6, 0, 1.0]
    resources = driver.get_available_resource(NODE)
    assert resources["vcpus"] == 2
    cells = objects.NUMATopology.obj_from_db_obj(resources["numa_topology"]).cells
    assert [cell.pcpuset for cell in cells] == [{2, 3}, {4, 5, 6, 7}]
    options("compute", cpu_shared_set=None)
    driver.init_host(NODE)
    driver.update_provider_tree(found, NODE)
    assert orc.VCPU not in found.data(NODE).inventory


def test_traits_follow_the_host(driver: Any, engine: FakeEngine) -> None:
    found = tree()
    for storage, there in (("btrfs", True), ("vfs", False)):
        engine.info_ = replace(fakes.INFO, storage_driver=storage)
        driver.init_host(NODE)
        driver.update_provider_tree(found, NODE)
        assert ("CUSTOM_DOCKER_DISK_QUOTA" in found.data(NODE).traits) is there


@pytest.mark.parametrize(("storage", "warned"), [("btrfs", False), ("vfs", True)])
def test_a_host_that_can_not_limit_disks_says_so(
    driver: Any, engine: FakeEngine, caplog: pytest.LogCaptureFixture, storage: str, warned: bool
) -> None:
    engine.info_ = replace(fakes.INFO, storage_driver=storage)
    caplog.clear()
    driver.init_host(NODE)
    assert ("can fill the disk" in caplog.text) is warned


def test_inventory_while_the_engine_is_away(
    driver: Any, engine: FakeEngine, fake_host: FakeHost
) -> None:
    found = tree()
    before = driver.get_available_resource(NODE)
    driver.update_provider_tree(found, NODE)
    engine.away = True
    # Nova logs a traceback each minute if this fails.
    assert driver.get_available_resource(NODE)["memory_mb"] == before["memory_mb"]
    driver.update_provider_tree(found, NODE)
    assert "does not answer" in str(fake_host.service_status.reports[-1])
    rows = found.data(NODE).inventory.values()
    assert rows
    assert all(row["reserved"] == row["total"] > 0 for row in rows)
    engine.away = False
    driver.update_provider_tree(found, NODE)
    assert found.data(NODE).inventory[orc.VCPU]["reserved"] == 0
    assert fake_host.service_status.reports[-1] is None


def test_capabilities_have_all_keys_of_nova_and_only_bool(driver: Any) -> None:
    assert driver.capabilities.keys() == nova_driver.ComputeDriver.capabilities.keys()
    assert {key for key, value in driver.capabilities.items() if value} == {
        "supports_evacuate",
        "supports_trusted_certs",
        "supports_attach_interface",
        "has_imagecache",
        "supports_device_tagging",
        "supports_tagged_attach_interface",
        "supports_tagged_attach_volume",
        "supports_extend_volume",
        "supports_multiattach",
        "supports_image_type_raw",
        "supports_pcpus",
    }


# -- consoles, diagnostics and snapshots ----------------------------------------------------------


def test_console(
    driver: Any, spawn: Any, instance: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn()
    monkeypatch.setattr(engine, "read_console", lambda _, most: (b"x" * 200_000 + b"end")[-most:])
    output = driver.get_console_output(None, instance)
    assert len(output) == 102_400
    assert output.endswith("end")


def test_serial_console(
    driver: Any, spawn: Any, instance: Any, fake_host: FakeHost, options: Any
) -> None:
    options("serial_console", proxyclient_address="192.0.2.1")
    spawn()
    found = driver.get_serial_console(None, instance)
    assert (found.host, found.port) == ("192.0.2.1", 10_000)
    assert fake_host.consoles.opened == {instance.uuid: f"id-nova-{instance.uuid}"}
    driver.power_off(instance)
    assert fake_host.consoles.opened == {}
    with pytest.raises(nova_exception.InstanceNotReady):
        driver.get_serial_console(None, instance)


def test_diagnostics(driver: Any, spawn: Any, instance: Any) -> None:
    spawn()
    found = driver.get_instance_diagnostics(instance)
    assert (found.state, found.hypervisor, found.num_cpus) == ("running", "docker", 2)
    assert found.memory_details.used == 5
    assert found.memory_details.maximum == 256
    assert found.disk_details[0].write_requests == 4
    assert found.nic_details[0].mac_address == "fa:16:3e:00:00:05"
    assert driver.get_diagnostics(instance)["num_cpus"] == 2


def test_diagnostics_count_processes_killed_for_want_of_memory(
    driver: Any, spawn: Any, instance: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn()
    monkeypatch.setattr(cgroup, "read_oom_kills", lambda pid, _: 3 if pid == os.getpid() else 0)
    assert driver.get_diagnostics(instance)["oom_kills"] == 3
    driver.power_off(instance)
    assert driver.get_diagnostics(instance)["oom_kills"] == 0


def test_diagnostics_of_a_stopped_server(driver: Any, spawn: Any, instance: Any) -> None:
    spawn()
    driver.power_off(instance)
    found = driver.get_instance_diagnostics(instance)
    assert (found.state, found.num_cpus, found.num_nics) == ("shutdown", 0, 1)
    assert isinstance(found, objects.Diagnostics)


def test_snapshot_is_uploaded_between_the_two_tasks(
    driver: Any, spawn: Any, instance: Any, fake_host: FakeHost
) -> None:
    spawn()
    tasks: list[tuple[str, str | None]] = []

    def update(task_state: str, expected_state: str | None = None) -> None:
        tasks.append((task_state, expected_state))

    driver.snapshot(None, instance, "image-1", update)
    assert tasks == [
        ("image_pending_upload", None),
        ("image_uploading", "image_pending_upload"),
    ]
    assert fake_host.images.uploads == [("image-1", f"image of nova-{instance.uuid}")]


def test_snapshot_of_what_is_gone(driver: Any, instance: Any) -> None:
    with pytest.raises(nova_exception.InstanceNotRunning):
        driver.snapshot(None, instance, "image-1", None)


def test_an_image_that_ages_out_before_its_server_is_loaded_again(
    spawn: Any,
    instance: Any,
    engine: FakeEngine,
    fake_host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    instance.trusted_certs = objects.TrustedCerts(ids=["c1"])
    create, missing = engine.create_container, [True]

    def create_once_there(container: ContainerSpec) -> str:
        if missing:
            missing.pop()
            raise exception.EngineImageNotFound(operation="the creation", reason="gone")
        return create(container)

    monkeypatch.setattr(engine, "create_container", create_once_there)
    spawn()
    assert [call[0] for call in engine.calls] == ["create", "start"]
    assert fake_host.images.trusted == [instance.trusted_certs] * 2


def test_cache(driver: Any, instance: Any, fake_host: FakeHost) -> None:
    assert driver.cache_image(None, "image-1") is True
    driver.manage_image_cache(None, [instance])
    assert fake_host.image_cache.updates == [[instance]]
    assert driver.capabilities["has_imagecache"] is True
