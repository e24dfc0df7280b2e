# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence
from typing import Any

import pytest
from nova.compute import power_state, vm_states
from nova.compute import provider_tree as placement

from novadocker import exception, naming
from novadocker.privsep.storage import overlay_names
from novadocker.virt.docker.containers import rescue
from novadocker.virt.docker.model import Mount, Overlay
from tests.unit.fakes import FakeEngine, FakeNetwork

NODE = "host1"
OPTIONS = "lowerdir=/lower/2:/lower/1,upperdir=/upper/id-{},workdir=/w,index=off"


@pytest.fixture
def name(driver: Any, instance: Any, image_meta: Any, network_info: Any) -> str:
    """Start a server and return the name of its container."""
    driver.spawn(None, instance, image_meta, [], None, {}, network_info=network_info)
    return f"nova-{instance.uuid}"


@pytest.fixture
def start(driver: Any, name: str, instance: Any, image_meta: Any, network_info: Any) -> Any:
    """Return a function that rescues the server in the manager's order of calls."""

    def call() -> None:
        driver.power_off(instance, 60, 10)
        driver.rescue(None, instance, network_info, image_meta, "secret", None, None)
        instance.vm_state = vm_states.RESCUED

    return call


def state(engine: FakeEngine) -> dict[str, tuple[str, str]]:
    """Return each container's id and status by its name."""
    return {c.name: (c.id, c.status) for c in engine.containers.values()}


def test_another_container_stands_in(
    start: Any, name: str, driver: Any, engine: FakeEngine, network: FakeNetwork, instance: Any
) -> None:
    start()
    assert state(engine) == {
        f"{name}-rescued": (f"id-{name}", "exited"),
        name: (f"id-{name}-2", "running"),
    }
    made = engine.specs[name]
    assert made.overlays == (Overlay(OPTIONS.format(name), "/rescue"),)
    assert Mount("/volumes/1", "/rescue/data", writable=True) in made.mounts
    assert network.bound[f"id-{name}-2"] == instance.uuid
    assert network.login is not None
    assert network.login["password_hash"]
    assert instance.uuid not in network.silent
    assert driver.list_instance_uuids() == [instance.uuid]
    assert driver.get_info(instance).state == power_state.RUNNING


def test_unrescue_starts_the_servers_own(
    start: Any, name: str, driver: Any, engine: FakeEngine, network: FakeNetwork, instance: Any
) -> None:
    start()
    driver.unrescue(None, instance)
    assert state(engine) == {name: (f"id-{name}", "running")}
    assert network.bound == {f"id-{name}": instance.uuid}
    assert network.login is None


def test_a_failed_rescue_leaves_the_server_as_it_was(
    start: Any, name: str, engine: FakeEngine
) -> None:
    engine.exit_code = 3
    with pytest.raises(exception.StartFailed, match="exit status 3"):
        start()
    assert state(engine) == {name: (f"id-{name}", "exited")}


@pytest.mark.parametrize(
    ("fault", "text"),
    [({"storage_driver": "vfs"}, "vfs"), ({"lowers": ("/lower" * 8,) * 140}, "140 layers")],
)
def test_files_that_cant_be_mounted(
    start: Any, name: str, engine: FakeEngine, fault: dict[str, Any], text: str
) -> None:
    for attribute, value in fault.items():
        setattr(engine, attribute, value)
    with pytest.raises(exception.RescueRefused, match=text):
        start()
    assert state(engine) == {name: (f"id-{name}", "exited")}


LAYERS = tuple(f"/var/lib/docker/overlay2/{number:064x}/diff" for number in range(127))


def test_more_layers_than_mount_takes_by_their_own_names(
    start: Any,
    name: str,
    driver: Any,
    engine: FakeEngine,
    instance: Any,
    network_info: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: dict[str, Sequence[str]] = {}
    monkeypatch.setattr(overlay_names, "make", made.__setitem__)
    monkeypatch.setattr(overlay_names, "remove", made.pop)
    engine.lowers = LAYERS
    start()
    folders = [f"/upper/id-{name}", "/w", *LAYERS]
    short = overlay_names.names(instance.uuid, len(folders))
    assert engine.specs[name].overlays[0].options == (
        f"lowerdir={':'.join(short[2:])},upperdir={short[0]},workdir={short[1]},index=off"
    )
    assert len(engine.specs[name].overlays[0].options) < 4096
    assert [*made[instance.uuid]][1:] == folders[1:]
    # The host reboots.
    made.clear()
    driver.power_off(instance)
    driver.power_on(None, instance, network_info)
    assert [*made[instance.uuid]][1:] == folders[1:]
    driver.unrescue(None, instance)
    assert made == {}


def test_power_while_rescued(
    start: Any, name: str, driver: Any, engine: FakeEngine, instance: Any, network_info: Any
) -> None:
    start()
    for _ in range(2):
        driver.reboot(None, instance, network_info, "HARD")
        assert state(engine)[name] == (f"id-{name}-2", "running")
        driver.power_off(instance)
        assert state(engine)[name] == (f"id-{name}-2", "exited")
        driver.init_host(NODE)
        driver.plug_vifs(instance, network_info)
        driver.resume_state_on_host_boot(None, instance, network_info, None)
        assert state(engine)[name] == (f"id-{name}-2", "running")
    assert state(engine)[f"{name}-rescued"] == (f"id-{name}", "exited")


@pytest.mark.parametrize("vm_state", [vm_states.ERROR, vm_states.SOFT_DELETED])
def test_what_nova_does_not_take_for_rescued_starts_as_itself(
    start: Any,
    name: str,
    driver: Any,
    engine: FakeEngine,
    instance: Any,
    network_info: Any,
    vm_state: str,
) -> None:
    start()
    instance.vm_state = vm_state
    driver.power_on(None, instance, network_info)
    assert state(engine) == {name: (f"id-{name}", "running")}


def test_a_second_rescue_ends_the_first(start: Any, name: str, engine: FakeEngine) -> None:
    start()
    start()
    assert state(engine) == {
        f"{name}-rescued": (f"id-{name}", "exited"),
        name: (f"id-{name}-2", "running"),
    }
    assert engine.specs[name].overlays[0].options == OPTIONS.format(name)


def test_deletion_removes_both(
    start: Any, driver: Any, engine: FakeEngine, instance: Any, network_info: Any
) -> None:
    start()
    driver.destroy(None, instance, network_info)
    assert state(engine) == {}


def test_nova_compute_was_killed_while_neither_had_the_name(
    name: str, driver: Any, engine: FakeEngine, instance: Any
) -> None:
    rescue.set_aside(engine, instance.uuid, engine.inspect_container(name))
    driver.init_host(NODE)
    assert state(engine) == {name: (f"id-{name}", "running")}


def test_the_engine_died_while_neither_had_the_name(
    start: Any,
    name: str,
    driver: Any,
    engine: FakeEngine,
    instance: Any,
    network_info: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(_spec: object) -> str:
        engine.away = True
        raise exception.EngineUnavailable(url="fake", reason="it has just died")

    def periodic() -> None:
        tree = placement.ProviderTree()
        tree.new_root(NODE, instance.uuid)
        driver.update_provider_tree(tree, NODE)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "create_container", die)
        with pytest.raises(exception.EngineUnavailable):
            start()
    engine.away = False
    assert state(engine) == {f"{name}-rescued": (f"id-{name}", "exited")}
    periodic()
    assert state(engine) == {name: (f"id-{name}", "exited")}
    # A new rescue must not be taken for an interrupted one.
    start()
    periodic()
    assert set(state(engine)) == {name, f"{name}-rescued"}


def test_a_stand_in_stays_when_there_is_nothing_to_put_back(
    start: Any, name: str, driver: Any, engine: FakeEngine, instance: Any
) -> None:
    start()
    engine.remove_container(f"{name}-rescued")
    with pytest.raises(exception.ContainerNotFound):
        driver.unrescue(None, instance)
    assert set(state(engine)) == {name}


def test_no_label_of_an_image_makes_a_stand_in(name: str, engine: FakeEngine) -> None:
    # An image's labels apply unless the container has its own, so the driver overrides this one.
    assert engine.specs[name].labels[naming.LABEL_RESCUE] == ""
    assert not rescue.is_stand_in(engine.inspect_container(name))
