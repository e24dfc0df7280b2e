# SPDX-License-Identifier: Apache-2.0
"""Limits of a running server on a real kernel: set, changed by others, and restored."""

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest
from nova.network import model as network_model

from novadocker import exception
from novadocker.exporter import switch_rates
from novadocker.linux import cgroup as linux_cgroup
from novadocker.linux.cgroup import DiskRates
from novadocker.privsep.guest import cgroup as guest_cgroup
from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from novadocker.privsep.network.types import NetworkRate
from novadocker.state_files import port_rates
from novadocker.state_files.port_rates import Port, PortRate
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.host import filesystem
from novadocker.virt.docker.limits import cgroup, enforcement
from novadocker.virt.docker.model import ContainerDetail, Limits
from novadocker.virt.docker.network import vif
from novadocker.virt.docker.operations import resize
from tests.engine import machines, networks
from tests.engine.machines import Machine
from tests.engine.switch import Switch

MIB = 1 << 20
SMALL = replace(machines.LIMITS, cpu_quota_us=50_000)
RATES = DiskRates(read_bytes=8 * MIB, write_bytes=4 * MIB, read_iops=200, write_iops=100)
LARGE = replace(
    SMALL,
    cpu_shares=2048,
    cpu_period_us=50_000,
    cpu_quota_us=75_000,
    cpuset_cpus=frozenset({0}),
    memory_bytes=128 * MIB,
    swap_bytes=16 * MIB,
    pids=100,
    disk=RATES,
)
# The script counts in a file forever.
COUNT = (
    "sh",
    "-c",
    "i=0; while :; do i=$((i+1)); echo $i > /next; mv /next /count; sleep 0.01; done",
)


@pytest.fixture(scope="module")
def client(engine_url: str) -> Iterator[docker.APIClient]:
    with machines.connected(engine_url) as found:
        yield found


@pytest.fixture
def server(engine: Engine, client: docker.APIClient) -> Iterator[Machine]:
    with machines.machine(engine, client, limits=SMALL, command=COUNT) as found:
        yield found


@pytest.fixture
def enforcer(engine: Engine, tmp_path: Path) -> enforcement.Enforcement:
    return enforcement.Enforcement(engine, engine.info(), tmp_path)


@pytest.fixture
def uuid(new_instance_uuid: Callable[[], str]) -> str:
    return new_instance_uuid()


def detail(engine: Engine, machine: Machine) -> ContainerDetail:
    return engine.inspect_container(machine.id)


def differing(engine: Engine, machine: Machine, limits: Limits) -> dict[str, str]:
    groups = linux_cgroup.groups(detail(engine, machine).pid, machine.id)
    return cgroup.differences(groups, cgroup.with_cpuset(groups, limits))


def disk_rates(engine: Engine, machine: Machine) -> DiskRates:
    disk = linux_cgroup.disk_of(filesystem.mount_of(engine.info().data_root).device)
    assert disk
    return linux_cgroup.read_disk_rates(
        linux_cgroup.groups(detail(engine, machine).pid, machine.id), disk
    )


def test_everything_changes_under_a_running_server(
    engine: Engine, enforcer: enforcement.Enforcement, server: Machine, uuid: str
) -> None:
    assert differing(engine, server, LARGE)
    before = int(server.shell("while [ ! -e /count ]; do usleep 1000; done; cat /count")[1])
    enforcer.enforce(uuid, detail(engine, server), LARGE, ())
    assert differing(engine, server, LARGE) == {}
    assert disk_rates(engine, server) == RATES
    assert server.shell("nproc")[1] == "1"
    enforcer.enforce(uuid, detail(engine, server), SMALL, ())
    assert differing(engine, server, SMALL) == {}
    assert disk_rates(engine, server) == DiskRates()
    assert detail(engine, server).pid == server.pid
    assert int(server.shell("cat /count")[1]) > before


def test_the_engine_remembers_what_it_can_and_the_rest_is_set_again(
    engine: Engine,
    enforcer: enforcement.Enforcement,
    client: docker.APIClient,
    server: Machine,
    uuid: str,
) -> None:
    enforcer.enforce(uuid, detail(engine, server), LARGE, ())
    client.restart(server.id, timeout=0)
    assert differing(engine, server, LARGE) == {}
    assert disk_rates(engine, server) == DiskRates()
    enforcer.sweep()
    assert disk_rates(engine, server) == RATES


def test_a_stopped_server_has_them_when_it_starts(
    engine: Engine,
    enforcer: enforcement.Enforcement,
    client: docker.APIClient,
    server: Machine,
    uuid: str,
) -> None:
    client.kill(server.id)
    client.wait(server.id)
    enforcer.enforce(uuid, detail(engine, server), LARGE, ())
    client.start(server.id)
    assert differing(engine, server, LARGE) == {}


def test_memory_in_use_is_refused_and_nothing_is_changed(
    engine: Engine, enforcer: enforcement.Enforcement, server: Machine, uuid: str
) -> None:
    server.client.exec_start(
        server.client.exec_create(server.id, ["perl", "-e", "$x='x' x (20<<20); sleep 100"])["Id"],
        detach=True,
    )
    found = detail(engine, server)
    for _ in range(1000):
        if enforcer.memory_in_use(found) > 20 * MIB:
            break
        server.shell("usleep 10000")
    tiny = replace(SMALL, memory_bytes=16 * MIB)
    with pytest.raises(exception.ResizeRefused, match="more than the 16 MiB of the flavor"):
        resize.check_fits(enforcer, found, SMALL, tiny)
    # If the use grows after the check, the engine refuses, or the driver does (cgroup v2).
    with pytest.raises((exception.EngineError, exception.LimitsNotKept), match="memory"):
        resize.change(enforcer, uuid, found, SMALL, replace(LARGE, memory_bytes=16 * MIB), ())
    assert differing(engine, server, SMALL) == {}
    assert detail(engine, server).pid == server.pid


def test_cache_is_no_memory_in_use(
    engine: Engine, enforcer: enforcement.Enforcement, server: Machine, uuid: str
) -> None:
    server.shell("dd if=/dev/zero of=/big bs=1M count=40; sync; cat /big > /dev/null")
    found = detail(engine, server)
    assert enforcer.memory_in_use(found) < 20 * MIB
    small = replace(SMALL, memory_bytes=24 * MIB)
    resize.change(enforcer, uuid, found, SMALL, small, ())
    assert differing(engine, server, small) == {}


def test_a_failure_in_the_middle_puts_everything_back(
    engine: Engine,
    enforcer: enforcement.Enforcement,
    server: Machine,
    uuid: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise exception.LimitsNotKept(reason="the disk fails")

    monkeypatch.setattr(enforcer, "resize_disk", fail)
    new = replace(LARGE, disk_bytes=5 << 30)
    with pytest.raises(exception.LimitsNotKept, match="the disk fails"):
        resize.change(enforcer, uuid, detail(engine, server), SMALL, new, ())
    assert differing(engine, server, SMALL) == {}
    assert disk_rates(engine, server) == DiskRates()


def test_rates_of_another_container_are_not_touched(engine: Engine, server: Machine) -> None:
    with pytest.raises(ProcessLookupError):
        guest_cgroup.write_disk_rates(server.pid, "0" * 64, "254:0", RATES)
    with pytest.raises(ProcessLookupError):
        guest_cgroup.write_disk_rates(1, server.id, "254:0", RATES)


# -- the network ----------------------------------------------------------------------------------


@pytest.fixture
def pair(
    ovs: Switch, new_instance_uuid: Callable[[], str]
) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Yield two wired instances: uuid and host device of each."""
    made = []
    for address in ("10.7.0.5", "10.7.0.6"):
        uuid, port = new_instance_uuid(), networks.simple_vif(address)
        vif.plug_vifs(networks.instance(uuid), network_model.NetworkInfo([port]))
        made.append((uuid, port))
    yield tuple((uuid, port["devname"]) for uuid, port in made)  # type: ignore[misc]
    for uuid, port in made:
        vif.unplug_vifs(networks.instance(uuid), network_model.NetworkInfo([port]))
        runtime.delete_namespace(uuid)


def megabits(source: str, target: str, address: str) -> float:
    """Return the TCP throughput from one instance to another in Mbit/s."""
    inside = ["nsenter", f"--net={namespace.namespace_path(target)}", "iperf3", "-s", "-1"]
    with subprocess.Popen([*inside, "--forceflush"], stdout=subprocess.PIPE, text=True) as sink:
        assert sink.stdout
        while "listening" not in sink.stdout.readline():
            assert sink.poll() is None
        done = subprocess.run(
            [
                *("nsenter", f"--net={namespace.namespace_path(source)}"),
                *("iperf3", "-J", "-O", "1", "-t", "2", "-c", address),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        sink.stdout.read()
    return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e6


def test_network_rates_both_ways(
    engine: Engine,
    enforcer: enforcement.Enforcement,
    server: Machine,
    pair: tuple[tuple[str, str], tuple[str, str]],
    tmp_path: Path,
) -> None:
    (uuid, device), (other, _) = pair
    found, devices = detail(engine, server), ((device, "eth0"),)
    rated = replace(
        SMALL, inbound=NetworkRate(average=2_500_000), outbound=NetworkRate(average=1_250_000)
    )
    enforcer.enforce(uuid, found, rated, devices)
    told = Path(port_rates.path_of(str(tmp_path), uuid)).read_text()
    rate = PortRate(received=2_500_000, sent=1_250_000)
    assert port_rates.parse(told) == {"eth0": Port(rate, device)}
    # Packets that were queued before the measurement arrive within it.
    assert megabits(other, uuid, "10.7.0.5") < 20 * 1.2
    assert megabits(uuid, other, "10.7.0.6") < 10 * 1.2
    enforcer.enforce(uuid, found, SMALL, devices)
    assert megabits(other, uuid, "10.7.0.5") > 20 * 1.2


def test_changing_a_rate_loses_no_packet(
    engine: Engine,
    enforcer: enforcement.Enforcement,
    server: Machine,
    pair: tuple[tuple[str, str], tuple[str, str]],
) -> None:
    (uuid, device), _ = pair
    found, devices = detail(engine, server), ((device, "eth0"),)
    rated = replace(SMALL, inbound=NetworkRate(2_500_000), outbound=NetworkRate(1_250_000))
    enforcer.enforce(uuid, found, rated, devices)
    command = ["nsenter", f"--net={namespace.namespace_path(uuid)}"]
    command += ["ping", "-q", "-i", "0.002", "-c", "300", "10.7.0.6"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ping:
        while ping.poll() is None:
            enforcer.enforce(uuid, found, replace(rated, inbound=NetworkRate(5_000_000)), devices)
            enforcer.enforce(uuid, found, SMALL, devices)
            enforcer.enforce(uuid, found, rated, devices)
        assert ping.stdout
        assert " 0% packet loss" in ping.stdout.read()


def test_neutrons_qos_stays_and_the_lower_rate_wins(
    engine: Engine,
    enforcer: enforcement.Enforcement,
    ovs: Switch,
    server: Machine,
    pair: tuple[tuple[str, str], tuple[str, str]],
    tmp_path: Path,
) -> None:
    (uuid, device), (other, _) = pair
    found, devices = detail(engine, server), ((device, "eth0"),)
    rated = replace(SMALL, inbound=NetworkRate(2_500_000))
    enforcer.enforce(uuid, found, rated, devices)
    # Neutron's agent configures a port's rule in this way.
    ovs.vsctl(
        *("set", "port", device, "qos=@q", "--", "--id=@q", "create", "qos", "type=linux-htb"),
        *("other-config:max-rate=10000000", "queues=0=@s", "--"),
        *("--id=@s", "create", "queue", "other-config:max-rate=10000000"),
    )
    # On the kernel datapath, os-vif configures its own QoS.
    qos = ovs.vsctl("get", "port", device, "qos")
    queue = ovs.vsctl("get", "qos", qos, "queues:0")
    try:
        enforcer.sweep()
        assert _kinds(device) == {"htb", "tbf"}
        ovs.vsctl("set", "interface", device, "ingress_policing_rate=20000")
        rate = PortRate(received=1_250_000, sent=2_500_000)
        assert switch_rates.read_rates(ovs.folder) == {device: rate}
        assert megabits(other, uuid, "10.7.0.5") < 10 * 1.2
        slow = replace(SMALL, inbound=NetworkRate(625_000))
        enforcer.enforce(uuid, found, slow, devices)
        # Including a burst, the throughput is below the switch's limit.
        assert megabits(other, uuid, "10.7.0.5") < 7
    finally:
        ovs.vsctl(
            *("set", "interface", device, "ingress_policing_rate=0", "--"),
            *("clear", "port", device, "qos"),
            *("--", "destroy", "qos", qos, "--", "destroy", "queue", queue),
        )
    enforcer.sweep()
    assert _kinds(device) == {"tbf"}


def _kinds(device: str) -> set[str]:
    shown = subprocess.run(
        ["tc", "-j", "qdisc", "show", "dev", device], check=True, capture_output=True, text=True
    ).stdout
    return {row["kind"] for row in json.loads(shown)}


def test_a_burst_and_a_peak_are_kept(
    engine: Engine,
    enforcer: enforcement.Enforcement,
    server: Machine,
    pair: tuple[tuple[str, str], tuple[str, str]],
) -> None:
    (uuid, device), _ = pair
    rate = NetworkRate(average=1_250_000, peak=2_500_000, burst=512 << 10)
    enforcer.enforce(
        uuid, detail(engine, server), replace(SMALL, inbound=rate), ((device, "eth0"),)
    )
    shown = subprocess.run(
        ["tc", "qdisc", "show", "dev", device], check=True, capture_output=True, text=True
    ).stdout
    assert "rate 10Mbit" in shown
    assert "burst 512Kb" in shown
    assert "rate 20Mbit" in shown


def test_the_disk_behind_the_data_root(engine: Engine) -> None:
    disk = linux_cgroup.disk_of(filesystem.mount_of(engine.info().data_root).device)
    assert disk
    assert not Path(f"/sys/dev/block/{disk}/partition").exists()
