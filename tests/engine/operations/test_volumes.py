# SPDX-License-Identifier: Apache-2.0
"""Volumes in servers of a real engine: loop devices, which Cinder calls volumes of type local."""

import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from nova import conf
from nova import exception as nova_exception
from nova.compute import power_state

from novadocker.linux import cgroup
from novadocker.linux.cgroup import DiskRates
from novadocker.privsep.guest import volume_devices
from tests.engine import loop_devices
from tests.engine.hosts import ComputeHost
from tests.engine.servers import Server
from tests.waiting import until

MIB = 1 << 20
NewVolume = Callable[[], str]


@pytest.fixture
def new_volume(tmp_path: Path) -> Iterator[NewVolume]:
    """Yield a function that returns a new device of 8 MiB."""
    with ExitStack() as undo:

        def create() -> str:
            return undo.enter_context(
                loop_devices.volume(tmp_path / f"volume-{uuid.uuid4()}", 8 * MIB)
            )

        yield create


@pytest.fixture
def resumed() -> Iterator[None]:
    """Let nova-compute start the servers that ran before the host went down."""
    conf.CONF.set_override("resume_guests_state_on_host_boot", True)
    yield
    conf.CONF.clear_override("resume_guests_state_on_host_boot")


def shell(host: ComputeHost, server: Server, script: str) -> str:
    call = host.client.exec_create(server.name, ["sh", "-c", script])["Id"]
    output: bytes = host.client.exec_start(call)
    return output.decode()


def write(host: ComputeHost, server: Server, path: str, text: str) -> str:
    return shell(
        host, server, f"echo {text} | dd of={path} bs=512 conv=sync 2>&1 | grep -v records"
    )


def read(host: ComputeHost, server: Server, path: str) -> str:
    found = shell(host, server, f"dd if={path} bs=512 count=1 2>&1 | tr -d '\\0' | grep -v records")
    return found.strip()


def is_denied(host: ComputeHost, server: Server, device: str) -> bool:
    """Return True if another node of a device does not open it.

    The host's root makes the node, because in a user namespace the server's root cannot.
    """
    # The server has looked up no such name yet.
    folder = f"root/{uuid.uuid4()}"
    assert shell(host, server, f"mkdir -p /{folder}") == ""
    layer = host.client.inspect_container(server.name)["GraphDriver"]["Data"]["UpperDir"]
    os.mknod(Path(layer, folder, "node"), stat.S_IFBLK | 0o600, os.stat(device).st_rdev)
    found = shell(host, server, f"dd if=/{folder}/node count=1")
    return "not permitted" in found or "Permission denied" in found


def link(device: str) -> str:
    return f"/dev/disk/by-id/virtio-{Server.connection(device)['serial'][:20]}"


@pytest.mark.parametrize("flavor", ["small", "host"])
def test_the_life_of_a_volume(
    resumed: None, compute_host: ComputeHost, new_volume: NewVolume, flavor: str
) -> None:
    host = compute_host
    device = new_volume()
    nova = host.start_nova()
    server = nova.spawn(replace(host.new_server(flavor, (1,)), volumes=(device,)))
    try:
        assert write(host, server, "/dev/vdb", "first") == ""
        assert Path(device).read_bytes().startswith(b"first\n")
        assert shell(host, server, f"readlink -f {link(device)}") == "/dev/vdb\n"
        assert shell(host, server, "stat -c %u:%g:%a /dev/vdb") == "0:0:660\n"
        assert shell(host, server, "ls /sys/block; cat /sys/block/vdb/size") == "vdb\n16384\n"
        # Behind Nova's back.
        host.client.restart(server.name, timeout=0)
        assert read(host, server, "/dev/vdb") == "first"
        nova.reboot(server)
        assert read(host, server, link(device)) == "first"
        nova.power_off(server)
        nova.power_on(server)
        assert read(host, server, "/dev/vdb") == "first"
        server = nova.resize(server, "large") if flavor == "small" else server
        assert read(host, server, "/dev/vdb") == "first"
        server = nova.rescue(server)
        assert read(host, server, "/dev/vdb") == "first"
        server = nova.unrescue(server)
        assert read(host, server, "/dev/vdb") == "first"
        # As after a reboot of the host.
        nova.power_off(server)
        volume_devices.forget(server.uuid)
        nova.stop()
        nova = host.start_nova([replace(server, power_state=power_state.RUNNING)])
        assert read(host, server, "/dev/vdb") == "first"
    finally:
        nova.destroy(server)
        nova.stop()
    host.survey.check_nothing_else([])
    assert not volume_devices.held(server.uuid)
    assert not (volume_devices.FOLDER / f"nova-{server.uuid}").exists()


@pytest.mark.parametrize("flavor", ["small", "host"])
def test_attach_and_detach_while_the_server_runs(
    compute_host: ComputeHost, new_volume: NewVolume, flavor: str
) -> None:
    host = compute_host
    first, second = new_volume(), new_volume()
    nova = host.start_nova()
    server = nova.spawn(replace(host.new_server(flavor, (1,)), volumes=(first,)))
    try:
        for _ in range(3):
            server = nova.attach_volume(server, second)
            assert write(host, server, "/dev/vdc", "live") == ""
            assert Path(second).read_bytes().startswith(b"live\n")
            assert shell(host, server, f"readlink -f {link(second)}") == "/dev/vdc\n"
            assert shell(host, server, "ls /sys/block") == "vdb\nvdc\n"
            server = nova.detach_volume(server)
            assert shell(host, server, "ls /sys/block") == "vdb\n"
            assert "No such file" in shell(host, server, "ls /dev/vdc")
            assert "No such file" in shell(host, server, f"ls {link(second)}")
            assert is_denied(host, server, second)
        # The volume of the boot, too, and only that one.
        server = nova.attach_volume(server, second)
        if flavor == "small":
            # runc must not set its own rules again.
            server = nova.resize(server, "large")
            assert read(host, server, "/dev/vdc") == "live"
        one = replace(server, volumes=(first,))
        nova.detach_volume(one)
        assert "No such file" in shell(host, server, "ls /dev/vdb")
        assert is_denied(host, server, first)
        assert read(host, server, "/dev/vdc") == "live"
        host.client.restart(server.name, timeout=0)
        assert read(host, server, "/dev/vdc") == "live"
        assert "No such file" in shell(host, server, "ls /dev/vdb")
    finally:
        nova.destroy(server)
        nova.stop()
    host.survey.check_nothing_else([])


@pytest.mark.parametrize("flavor", ["small", "host"])
def test_a_device_that_a_process_has_open_is_not_detached(
    compute_host: ComputeHost, new_volume: NewVolume, flavor: str
) -> None:
    host = compute_host
    device = new_volume()
    nova = host.start_nova()
    server = nova.spawn(host.new_server(flavor, (1,)))
    try:
        server = nova.attach_volume(server, device)
        call = host.client.exec_create(server.name, ["sh", "-c", "exec sleep 1000 <>/dev/vdb"])
        host.client.exec_start(call["Id"], detach=True)
        found = until(lambda: host.client.exec_inspect(call["Id"])["Pid"])
        until(lambda: os.path.exists(f"/proc/{found}/fd/0"))
        until(lambda: "sleep" in Path(f"/proc/{found}/comm").read_text())
        with pytest.raises(nova_exception.DeviceDetachFailed, match="process 'sleep'"):
            nova.detach_volume(server)
        # The volume is as it was.
        assert write(host, server, "/dev/vdb", "still") == ""
        host.client.restart(server.name, timeout=0)
        assert read(host, server, "/dev/vdb") == "still"
        server = nova.detach_volume(server)
        assert "No such file" in shell(host, server, "ls /dev/vdb")
    finally:
        nova.destroy(server)
        nova.stop()


def test_a_read_only_volume(compute_host: ComputeHost, new_volume: NewVolume) -> None:
    host = compute_host
    device = new_volume()
    nova = host.start_nova()
    server = nova.spawn(host.new_server("small", (1,)))
    try:
        after = nova.attach_volume(server, device, access_mode="ro")
        assert read(host, after, "/dev/vdb") == ""
        assert "not permitted" in write(host, after, "/dev/vdb", "x")
        assert Path(device).read_bytes() == bytes(8 * MIB)
        server = after
        host.client.restart(server.name, timeout=0)
        assert "not permitted" in write(host, server, "/dev/vdb", "x")
    finally:
        nova.destroy(server)
        nova.stop()


def rates(host: ComputeHost, server: Server, device: str) -> DiskRates:
    found = host.client.inspect_container(server.name)
    number = os.stat(device).st_rdev
    groups = cgroup.groups(found["State"]["Pid"], found["Id"])
    return cgroup.read_disk_rates(groups, f"{os.major(number)}:{os.minor(number)}")


def test_the_limits_of_a_volumes_type(compute_host: ComputeHost, new_volume: NewVolume) -> None:
    host = compute_host
    device = new_volume()
    nova = host.start_nova()
    server = nova.spawn(host.new_server("small", (1,)))
    wanted = DiskRates(read_bytes=1 << 20, write_bytes=1 << 20, write_iops=500)
    try:
        specs = {"total_bytes_sec": "1048576", "write_iops_sec": "500"}
        before = server
        server = nova.attach_volume(server, device, qos_specs=specs)
        assert rates(host, server, device) == wanted
        # By the record, without the driver.
        host.client.restart(server.name, timeout=0)
        assert rates(host, server, device) == wanted
        server = nova.detach_volume(server)
        assert rates(host, server, device) == DiskRates()
        with pytest.raises(nova_exception.VolumeAttachFailed, match="no bursts"):
            nova.attach_volume(before, device, qos_specs={"total_iops_sec_max": "5"})
    finally:
        nova.destroy(server)
        nova.stop()


def test_two_servers_do_not_get_one_volume(
    compute_host: ComputeHost, new_volume: NewVolume
) -> None:
    host = compute_host
    device = new_volume()
    nova = host.start_nova()
    first = nova.spawn(replace(host.new_server("small", (1,)), volumes=(device,)))
    second = nova.spawn(host.new_server("small", (2,)))
    try:
        with pytest.raises(nova_exception.VolumeAttachFailed, match="another instance"):
            nova.attach_volume(second, device)
        assert is_denied(host, second, device)
        assert write(host, first, "/dev/vdb", "mine") == ""
        nova.destroy(first)
        second = nova.attach_volume(second, device)
        assert read(host, second, "/dev/vdb") == "mine"
    finally:
        nova.destroy(first)
        nova.destroy(second)
        nova.stop()
