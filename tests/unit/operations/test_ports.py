# SPDX-License-Identifier: Apache-2.0
"""Ports that are attached to and detached from a server; the driver's steps, on fakes."""

import copy
import re
from collections.abc import Callable
from typing import Any

import oslo_messaging
import pytest
from nova import objects
from nova.network import model
from oslo_privsep import comm
from oslo_utils import timeutils

from novadocker import exception, naming
from novadocker.linux.namespaces import IdMaps
from novadocker.virt.docker.host.user_namespaces import Trial, UserNamespaces
from novadocker.virt.docker.migration.nova_records import CutOffEvent
from novadocker.virt.docker.network import device_names
from novadocker.virt.docker.operations.ports import etc_files
from tests.unit.fakes import (
    FakeEngine,
    FakeGuestFiles,
    FakeHost,
    FakeNetwork,
    FakeNeutron,
    FakeNovaRecords,
)

FIRST, SECOND, THIRD = (f"0e6e0b4b-7a41-4f0b-9f1a-0f64e1f5a1c{digit}" for digit in (1, 2, 3))


@pytest.fixture
def saved(
    monkeypatch: pytest.MonkeyPatch, instance: objects.Instance, fake_host: FakeHost
) -> list[dict[str, str]]:
    """Return the names saved in Nova's database; the driver reads its own copy of the instance."""
    saves: list[dict[str, str]] = []
    fake_host.instances[instance.uuid] = instance
    monkeypatch.setattr(
        objects.Instance, "save", lambda self: saves.append(device_names.recorded_names(self))
    )
    return saves


@pytest.fixture
def server(
    instance: objects.Instance, engine: FakeEngine, network: FakeNetwork, saved: object
) -> str:
    """Create a running server with one port; return the container's id."""
    name = naming.container_name(instance.uuid)
    engine.add(
        name,
        {naming.LABEL_UUID: instance.uuid, naming.LABEL_SCHEMA: naming.SCHEMA},
        status="running",
    )
    network.ports = [FIRST]
    return f"id-{name}"


def port(instance: objects.Instance, port_id: str, dns: str = "10.0.0.2") -> model.VIF:
    vif = copy.deepcopy(instance.get_network_info()[0])
    vif["id"], vif["devname"] = port_id, f"tap{port_id}"[:14]
    (subnet,) = vif["network"]["subnets"]
    subnet["ips"] = [model.FixedIP(address=f"10.0.0.{port_id[-1]}")]
    subnet["dns"] = [model.IP(dns)]
    return vif


def add(driver: Any, instance: objects.Instance, vif: model.VIF) -> None:
    """Attach as Nova does, which adds the port to its cache before."""
    instance.get_network_info().append(vif)
    driver.attach_interface(None, instance, None, vif)


def remove(driver: Any, instance: objects.Instance, vif: model.VIF) -> None:
    """Detach as Nova does, which removes the port from its cache afterwards."""
    driver.detach_interface(None, instance, vif)
    instance.get_network_info().remove(vif)


def test_attach_and_detach(
    driver: Any, instance: objects.Instance, network: FakeNetwork, server: str, saved: Any
) -> None:
    second, third = port(instance, SECOND), port(instance, THIRD)
    first = instance.get_network_info()[0]
    add(driver, instance, second)
    assert network.ports == [FIRST, SECOND]
    remove(driver, instance, first)
    assert network.ports == [SECOND]
    assert network.kept_own
    add(driver, instance, third)
    assert network.ports == [SECOND, THIRD]
    assert saved == [
        {FIRST: "eth0", SECOND: "eth1"},
        {SECOND: "eth1"},
        {SECOND: "eth1", THIRD: "eth0"},
    ]
    assert network.silent == set()


def test_only_a_start_removes_settings_of_the_tenant(
    driver: Any, instance: objects.Instance, network: FakeNetwork, server: str
) -> None:
    ports = instance.get_network_info()
    driver.plug_vifs(instance, ports)
    assert network.kept_own
    driver.inject_network_info(instance, ports)
    assert network.kept_own
    driver.pause(instance)
    driver.unpause(instance)
    assert network.kept_own
    # Nova may take a server that runs for a stopped one.
    driver.power_on(None, instance, ports)
    assert network.kept_own
    driver.reboot(None, instance, ports, "HARD")
    assert not network.kept_own


def test_other_system_metadata_stays(
    driver: Any, instance: objects.Instance, server: str, saved: Any
) -> None:
    instance.system_metadata["image_min_ram"] = "0"
    add(driver, instance, port(instance, SECOND))
    assert instance.system_metadata["image_min_ram"] == "0"


def test_detaching_twice(
    driver: Any, instance: objects.Instance, network: FakeNetwork, server: str
) -> None:
    second = port(instance, SECOND)
    for _ in range(2):
        driver.detach_interface(None, instance, second)
    assert network.ports == [FIRST]


def test_stopped_server_stays_silent(
    driver: Any, instance: objects.Instance, network: FakeNetwork, engine: FakeEngine, server: str
) -> None:
    engine._set(server, "exited")
    add(driver, instance, port(instance, SECOND))
    assert network.silent == {instance.uuid}


def test_failed_attachment_leaves_the_other_ports(
    driver: Any,
    instance: objects.Instance,
    network: FakeNetwork,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plug = network.plug_vifs

    def refuse_second(instance: Any, ports: Any, keep_own: bool) -> None:
        plug(instance, ports)
        if len(ports) > 1:
            raise exception.PlugFailed(port_id=SECOND, reason="no bridge")

    monkeypatch.setattr(network, "plug_vifs", refuse_second)
    with pytest.raises(exception.PlugFailed, match="no bridge"):
        add(driver, instance, port(instance, SECOND))
    assert network.ports == [FIRST]


def test_without_a_container_nothing_is_wired(
    driver: Any, instance: objects.Instance, network: FakeNetwork, saved: Any
) -> None:
    second = port(instance, SECOND)
    with pytest.raises(exception.ContainerLost):
        driver.attach_interface(None, instance, None, second)
    with pytest.raises(exception.ContainerLost):
        driver.detach_interface(None, instance, instance.get_network_info()[0])
    with pytest.raises(exception.ContainerLost):
        driver.inject_network_info(instance, instance.get_network_info())
    assert network.ports == []
    assert network.wired == set()


def test_network_info_is_applied(
    driver: Any, instance: objects.Instance, network: FakeNetwork, server: str
) -> None:
    driver.inject_network_info(instance, instance.get_network_info())
    assert network.wired == {instance.uuid}


def test_name_servers_of_subnets_without_any(instance: objects.Instance, options: Any) -> None:
    bare, named = port(instance, SECOND), port(instance, THIRD, dns="10.0.0.9")
    bare["network"]["subnets"][0]["dns"] = []
    options(group="docker", default_name_servers=["192.0.2.53"])
    for ports, expected in (([bare], b"192.0.2.53"), ([bare, named], b"10.0.0.9")):
        found = etc_files(instance, model.NetworkInfo(ports))["resolv.conf"]
        assert found.endswith(b"\nnameserver " + expected + b"\n")


@pytest.mark.parametrize(
    ("resolv", "expected"),
    [
        (b"search novalocal\nnameserver 10.0.0.2\n", b"nameserver 10.0.0.9\n"),
        (b"nameserver 192.0.2.1 # mine\n", None),
        (None, None),
    ],
    ids=["as written", "changed by the tenant", "no plain file"],
)
def test_name_servers_of_a_new_port(
    driver: Any,
    instance: objects.Instance,
    server: str,
    guest_files: FakeGuestFiles,
    resolv: bytes | None,
    expected: bytes | None,
) -> None:
    """The engine cannot read the files of each running server."""
    if resolv is not None:
        guest_files.files["/etc/resolv.conf"] = resolv
    add(driver, instance, port(instance, SECOND, dns="10.0.0.9"))
    found = guest_files.files.get("/etc/resolv.conf")
    assert found.endswith(expected) if expected and found else found == resolv


def test_name_servers_of_a_server_with_a_link_in_their_place(
    driver: Any,
    instance: objects.Instance,
    server: str,
    guest_files: FakeGuestFiles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no regular file")

    monkeypatch.setattr(guest_files, "read_etc_file", refuse)
    add(driver, instance, port(instance, SECOND, dns="10.0.0.9"))
    assert guest_files.files == {}


@pytest.mark.parametrize(
    "error",
    [
        exception.EngineError(operation="the file", reason="disk full"),
        exception.EngineUnavailable(url="fake", reason="it has just died"),
    ],
    ids=["refused", "away"],
)
def test_files_that_cannot_be_written_do_not_undo_the_attachment(
    driver: Any,
    instance: objects.Instance,
    engine: FakeEngine,
    network: FakeNetwork,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(engine, "read_file", refuse)
    add(driver, instance, port(instance, SECOND))
    assert network.ports == [FIRST, SECOND]


@pytest.mark.parametrize("failure", [OSError("busy"), comm.PrivsepTimeout("60 s")])
def test_ports_that_stay_up_do_not_stop_the_start_of_nova_compute(
    driver: Any,
    instance: objects.Instance,
    network: FakeNetwork,
    engine: FakeEngine,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: Exception,
) -> None:
    def silence(_network: FakeNetwork, _instance: object, _ports: object) -> None:
        raise failure

    driver.power_off(instance)
    monkeypatch.setattr(FakeNetwork, "silence_vifs", silence)
    driver.plug_vifs(instance, instance.get_network_info())
    assert f"Failed to set the ports down: {failure}" in caplog.text


@pytest.mark.parametrize(
    "failure",
    [
        exception.ContainerLost(name="nova-x"),
        exception.EngineError(operation="the limits", reason="no memory"),
        OSError("disk full"),
        comm.PrivsepTimeout("60 s"),
    ],
)
def test_limits_that_cannot_be_set_do_not_stop_the_start_of_nova_compute(
    driver: Any,
    instance: objects.Instance,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: Exception,
) -> None:
    def find(_: object) -> None:
        raise failure

    monkeypatch.setattr(driver._ports._services, "find", find)
    driver.plug_vifs(instance, instance.get_network_info())
    assert f"Failed to set the limits of the instance: {failure}" in caplog.text


def test_engine_that_is_away_stops_the_start_of_nova_compute(
    driver: Any, instance: objects.Instance, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(_: object) -> None:
        raise exception.EngineUnavailable(url="fake", reason="it has just died")

    monkeypatch.setattr(driver._ports._services, "find", find)
    with pytest.raises(exception.EngineUnavailable):
        driver.plug_vifs(instance, instance.get_network_info())


@pytest.mark.parametrize("failure", [OSError("no space"), comm.PrivsepTimeout("60 s")])
def test_namespace_that_cannot_be_created_names_the_port(
    driver: Any,
    instance: objects.Instance,
    network: FakeNetwork,
    fake_host: FakeHost,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
) -> None:
    """A start of nova-compute goes on after PlugFailed only."""

    def create(*_: object) -> None:
        raise failure

    fake_host.id_maps = IdMaps(users=((0, 1000, 5),), groups=((0, 2000, 6),))
    driver.init_host("host1")
    monkeypatch.setattr(network, "create_owned_namespace", create)
    with pytest.raises(exception.PlugFailed, match=f"{FIRST}: .* cannot be created: {failure}"):
        driver.plug_vifs(instance, instance.get_network_info())


# -- the start of nova-compute --------------------------------------------------------------------


@pytest.fixture
def neutron(fake_host: FakeHost) -> FakeNeutron:
    return fake_host.neutron


@pytest.fixture
def start(driver: Any, instance: objects.Instance, server: str) -> Callable[[], None]:
    """Return a function that does the driver's part of the start of nova-compute."""

    def call() -> None:
        instance.host = "host1"
        # Nova wires each instance by its cache before it reports the resources for the first time.
        driver.plug_vifs(instance, instance.get_network_info())
        driver._ports.follow_neutron()

    return call


def neutrons(instance: objects.Instance, *ports: model.VIF) -> dict[str, model.NetworkInfo]:
    """Return the ports of the instance in Neutron."""
    return {instance.uuid: model.NetworkInfo(ports)}


def test_cut_off_attachment_is_finished_at_the_start(
    instance: objects.Instance,
    network: FakeNetwork,
    neutron: FakeNeutron,
    start: Callable[[], None],
    saved: Any,
) -> None:
    first = instance.get_network_info()[0]
    neutron.ports = neutrons(instance, first, port(instance, SECOND))
    start()
    assert network.ports == [FIRST, SECOND]
    assert [vif["id"] for vif in instance.get_network_info()] == [FIRST, SECOND]
    assert saved == [{FIRST: "eth0", SECOND: "eth1"}]


def test_cut_off_detachment_is_finished_at_the_start(
    instance: objects.Instance,
    network: FakeNetwork,
    neutron: FakeNeutron,
    start: Callable[[], None],
    saved: Any,
) -> None:
    first = instance.get_network_info()[0]
    instance.get_network_info().append(port(instance, SECOND))
    neutron.ports = neutrons(instance, first)
    unplugged: list[str] = []
    unplug = network.unplug_vifs
    network.unplug_vifs = lambda now, gone: (  # type: ignore[method-assign]
        unplugged.extend(vif["id"] for vif in gone),
        unplug(now, gone),
    )
    start()
    assert network.ports == [FIRST]
    assert unplugged == [SECOND]
    assert saved == [{FIRST: "eth0"}]


@pytest.mark.parametrize(
    ("action", "allocated", "bound", "failure"),
    [
        ("attach_interface", {SECOND}, [FIRST, SECOND], None),
        # Nova has not recorded the port yet.
        ("attach_interface", set(), [FIRST, SECOND], None),
        # Nova's cache had the port already.
        ("attach_interface", {FIRST}, [FIRST], None),
        ("attach_interface", set(), [FIRST], f"nova-compute died .* the instance: {FIRST}$"),
        # Nova takes back what Neutron refused.
        ("attach_interface", {SECOND}, [FIRST], "nova-compute died"),
        # Nova's cache may lack the port already.
        (
            "detach_interface",
            set(),
            [FIRST],
            f"nova-compute died .*, which may be complete; the ports of the instance: {FIRST}$",
        ),
        ("detach_interface", set(), [], None),
    ],
)
def test_result_of_a_cut_off_attachment(
    instance: objects.Instance,
    neutron: FakeNeutron,
    start: Callable[[], None],
    fake_host: FakeHost,
    saved: Any,
    action: str,
    allocated: set[str],
    bound: list[str],
    failure: str | None,
) -> None:
    records = fake_host.nova_records
    assert isinstance(records, FakeNovaRecords)
    event = CutOffEvent(instance.uuid, "req-1", action, f"compute_{action}", timeutils.utcnow())
    records.begun, records.ports = [event], allocated
    neutron.ports = neutrons(instance, *(port(instance, each) for each in bound))
    start()
    ((ended, text),) = records.ended.items()
    assert ended == f"compute_{action}"
    assert text is None if failure is None else re.search(failure, str(text))


def test_ports_that_agree_are_not_touched_at_the_start(
    instance: objects.Instance, neutron: FakeNeutron, start: Callable[[], None], saved: Any
) -> None:
    neutron.ports = neutrons(instance, *instance.get_network_info())
    start()
    assert saved == []


def test_ports_that_neutron_has_bound_elsewhere_are_not_touched(
    instance: objects.Instance,
    network: FakeNetwork,
    neutron: FakeNeutron,
    start: Callable[[], None],
    saved: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    neutron.ports = neutrons(instance, *instance.get_network_info())
    monkeypatch.setattr(neutron, "bound_ports", lambda host: {})
    start()
    assert network.ports == [FIRST]
    assert saved == []


def test_comparison_is_made_when_neutron_answers_and_only_once(
    driver: Any,
    instance: objects.Instance,
    network: FakeNetwork,
    neutron: FakeNeutron,
    start: Callable[[], None],
) -> None:
    first = instance.get_network_info()[0]
    neutron.ports = neutrons(instance, first, port(instance, SECOND))
    neutron.failure = exception.NeutronUnavailable(reason="connection refused")
    with pytest.raises(exception.NeutronUnavailable):
        start()
    assert network.ports == [FIRST]
    neutron.failure = None
    # Nova has refreshed its cache meanwhile.
    instance.info_cache.network_info = neutron.ports[instance.uuid]
    driver._ports.follow_neutron()
    assert network.ports == [FIRST, SECOND]
    neutron.failure = AssertionError("asked again")
    driver._ports.follow_neutron()


@pytest.mark.parametrize(
    "fault",
    [
        oslo_messaging.MessagingTimeout("no reply"),
        exception.NeutronUnavailable(reason="it restarts"),
        exception.EngineUnavailable(url="fake", reason="away"),
    ],
)
def test_a_server_is_compared_again_after_an_outage(
    driver: Any,
    instance: objects.Instance,
    network: FakeNetwork,
    neutron: FakeNeutron,
    start: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    fake_host: FakeHost,
    fault: Exception,
) -> None:
    first = instance.get_network_info()[0]
    neutron.ports = neutrons(instance, first, port(instance, SECOND))
    # The first server that fails does not keep the others from their turn.
    asked: list[str] = []

    def read(_context: object, instance_uuid: str) -> Any:
        asked.append(instance_uuid)
        raise fault

    other = copy.deepcopy(instance)
    other.uuid, other.host = "11111111-2222-3333-4444-555555555555", "host2"
    fake_host.instances[other.uuid] = other
    neutron.ports = {**neutron.ports, **neutrons(other, first, port(other, SECOND))}
    with monkeypatch.context() as patch:
        patch.setattr(driver._services, "read_instance", read)
        with pytest.raises(type(fault)):
            start()
        driver.plug_vifs(other, other.get_network_info())
        for _ in range(2):
            with pytest.raises(type(fault)):
                driver._ports.follow_neutron()
    assert asked == [instance.uuid, instance.uuid, other.uuid]
    driver._ports.follow_neutron()
    assert network.ports == [FIRST, SECOND]
    neutron.failure = AssertionError("asked again")
    driver._ports.follow_neutron()


def test_failure_of_one_server_does_not_stop_the_others(
    driver: Any,
    instance: objects.Instance,
    network: FakeNetwork,
    neutron: FakeNeutron,
    engine: FakeEngine,
    start: Callable[[], None],
    saved: Any,
    caplog: pytest.LogCaptureFixture,
    fake_host: FakeHost,
) -> None:
    other = copy.deepcopy(instance)
    other.uuid, other.host = "11111111-2222-3333-4444-555555555555", "host1"
    labels = {naming.LABEL_UUID: other.uuid, naming.LABEL_SCHEMA: naming.SCHEMA}
    engine.add(naming.container_name(other.uuid), labels, status="running")
    fake_host.instances[other.uuid] = other
    two = [*instance.get_network_info(), port(instance, SECOND)]
    neutron.ports = {**neutrons(instance, *two), **neutrons(other, *two)}
    plug, refused = network.plug_vifs, []

    def refuse_the_first(instance: Any, ports: Any, keep_own: bool) -> None:
        plug(instance, ports)
        if len(ports) > 1 and not refused:
            refused.append(instance.uuid)
            raise exception.PlugFailed(port_id=SECOND, reason="no bridge")

    network.plug_vifs = refuse_the_first  # type: ignore[method-assign]
    driver.plug_vifs(other, other.get_network_info())
    start()
    assert len(saved) == 2
    assert f"instance {refused[0]}; reboot the instance with --hard" in caplog.text
    assert "no bridge" in caplog.text


def boot(driver: Any, instance: objects.Instance, engine: FakeEngine) -> None:
    server = naming.container_name(instance.uuid)
    if engine.inspect_container(server).status == "running":
        engine.signal_container(server, "SIGKILL")
    driver.power_on(None, instance, instance.get_network_info())


def test_ids_of_its_own(
    driver: Any,
    fake_host: FakeHost,
    instance: objects.Instance,
    network: FakeNetwork,
    engine: FakeEngine,
    server: str,
) -> None:
    fake_host.user_namespaces = UserNamespaces(True, range(65536, 131072))
    driver.init_host("here")
    boot(driver, instance, engine)
    assert network.own_ids == {instance.uuid: range(65536, 131072)}
    instance.flavor.extra_specs = {"docker:userns": "host"}
    boot(driver, instance, engine)
    assert network.own_ids == {}


def test_a_flavor_that_needs_ids_of_its_own(
    driver: Any,
    fake_host: FakeHost,
    instance: objects.Instance,
    network: FakeNetwork,
    engine: FakeEngine,
    server: str,
) -> None:
    fake_host.user_namespaces = UserNamespaces(trial=Trial("old kernel"))
    driver.init_host("here")
    instance.flavor.extra_specs = {"docker:userns": "own"}
    with pytest.raises(exception.PlugFailed, match="old kernel"):
        boot(driver, instance, engine)
    # A server that has them keeps them.
    network.own_ids[instance.uuid] = range(65536, 131072)
    boot(driver, instance, engine)


def test_a_trial_that_failed_gives_no_server_the_ids_of_the_host(
    driver: Any,
    fake_host: FakeHost,
    instance: objects.Instance,
    network: FakeNetwork,
    engine: FakeEngine,
    server: str,
) -> None:
    pool = range(65536, 131072)
    fake_host.user_namespaces = UserNamespaces(True, pool, Trial(failure="no room"))
    driver.init_host("here")
    with pytest.raises(exception.PlugFailed, match="no room"):
        boot(driver, instance, engine)
    assert network.own_ids == {}
    assert network.wired == set()
    # A server that runs, or may not start, keeps its ports when nova-compute starts.
    driver.plug_vifs(instance, instance.get_network_info())
    assert network.wired == {instance.uuid}
    assert network.own_ids == {}
    # A server that has its own keeps them.
    network.own_ids[instance.uuid] = pool
    boot(driver, instance, engine)
    assert network.own_ids == {instance.uuid: pool}
    del network.own_ids[instance.uuid]
    # The next start tries the host again.
    fake_host.user_namespaces = UserNamespaces(True, pool)
    boot(driver, instance, engine)
    assert network.own_ids == {instance.uuid: pool}
    # No start tries it again after an answer.
    fake_host.user_namespaces = UserNamespaces(True, pool, Trial("old kernel"))
    boot(driver, instance, engine)
    assert network.own_ids == {instance.uuid: pool}


def test_a_malformed_flavor_does_not_stop_the_start_of_nova_compute(
    driver: Any, instance: objects.Instance, network: FakeNetwork, server: str
) -> None:
    instance.flavor.extra_specs = {"docker:userns": "mine"}
    with pytest.raises(exception.PlugFailed, match="'mine' is not host or own"):
        driver.plug_vifs(instance, instance.get_network_info())
