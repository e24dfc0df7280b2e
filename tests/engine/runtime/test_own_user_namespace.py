# SPDX-License-Identifier: Apache-2.0
"""Servers with a user namespace of their own, on an engine without ``userns-remap``."""

import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path

import docker
import pytest
from nova.network import model

from novadocker import exception
from novadocker.linux import namespaces
from novadocker.privsep.guest import files, runtime
from novadocker.privsep.network import namespace
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.model import Limits
from novadocker.virt.docker.network.nic import nics_from_network_info
from tests.engine import daemons, machines, namespaced, networks, privileged_calls, systemd_image
from tests.engine.machines import Machine, describe, start
from tests.engine.system_calls import native_calls
from tests.engine.systems import Server

FIRST = 1_900_019_712
SIZE = 65536
CONFINED = b"""[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo $$(id -u) $$(test -S /srv/log && echo bound) >/var/lib/dynamic/file'
DynamicUser=yes
StateDirectory=dynamic
PrivateUsers=yes
BindReadOnlyPaths=/dev/log:/srv/log
"""
CALLS = """
from novadocker.privsep.guest import files
container, pid = sys.argv[2], int(sys.argv[3])
assert files.set_password(container, pid, "root", "$6$other$hash", 2)
files.put_etc_file(container, pid, "resolv.conf", b"nameserver 192.0.2.1\\n")
files.put_etc_file(container, pid, "machine-id", b"0\\n")
"""


@pytest.fixture(scope="module")
def client(engine_url: str) -> Iterator[docker.APIClient]:
    with machines.connected(engine_url) as found:
        yield found


@pytest.fixture
def wired(instance_uuid: str) -> Iterator[str]:
    """Yield an instance with a complete namespace and without a switch."""
    port = networks.vif(networks.subnet("10.7.0.0/24", ["10.7.0.5"], "10.7.0.1"))
    nics = nics_from_network_info(model.NetworkInfo([port]))
    runtime.create_own_namespace(instance_uuid, FIRST, SIZE)
    namespace.wire_nics(instance_uuid, [asdict(nic) for nic in nics])
    yield instance_uuid
    namespace.unwire_nic(instance_uuid, port["devname"])
    runtime.delete_namespace(instance_uuid)
    assert not runtime.has_own_ids(instance_uuid)
    assert not Path(namespace.USER_NAMESPACES, f"nova-{instance_uuid}").exists()


@pytest.fixture
def server(engine: Engine, client: docker.APIClient, wired: str) -> Iterator[Machine]:
    yield start(engine, client, wired, describe(wired))
    engine.remove_container(f"nova-{wired}")


def test_root_is_nobody_on_the_host(server: Machine) -> None:
    assert server.run("id", "-u") == (0, "0")
    assert f"Uid:\t{FIRST}\t" in Path(f"/proc/{server.pid}/status").read_text()
    for name in ("uid_map", "gid_map"):
        assert Path(f"/proc/{server.pid}/{name}").read_text().split() == ["0", str(FIRST), "65536"]


def test_owners_on_the_disk_are_the_images(server: Machine, engine: Engine) -> None:
    assert server.shell(
        "cd /root && echo a >zero && echo b >five && chown 5:6 five && mkdir dir && "
        "chown 1000:1000 dir && mknod pipe p && ln -s x link && mv /usr/bin/su /root/su"
    ) == (0, "")
    upper = Path(engine.inspect_storage(server.id).upper)
    owners = {
        name: ((found := os.lstat(upper / "root" / name)).st_uid, found.st_gid)
        for name in ("zero", "five", "dir", "pipe", "link", "su")
    }
    assert owners == {
        "zero": (0, 0),
        "five": (5, 6),
        "dir": (1000, 1000),
        "pipe": (0, 0),
        "link": (0, 0),
        "su": (0, 0),
    }
    assert server.shell("stat -c %u:%g /root/zero /root/five /root/dir") == (
        0,
        "0:0\n5:6\n1000:1000",
    )


def test_the_network(server: Machine) -> None:
    namespaced.check_network(server)
    assert server.shell("cat /proc/sys/net/ipv4/ping_group_range") == (0, "0\t65535")


def test_what_is_put_into_it_is_roots(server: Machine) -> None:
    namespaced.check_files_of_the_driver(server)


def test_setuid_programs(server: Machine) -> None:
    assert server.run("su", "-c", "id -u", "user") == (0, "1000")


def test_exec_as_another_user(server: Machine) -> None:
    assert server.run("id", "-u", user="user") == (0, "1000")
    assert server.shell("mkdir -m 1777 /tmp/shared") == (0, "")
    assert server.shell("touch /tmp/shared/x && stat -c %u /tmp/shared/x", user="user") == (
        0,
        "1000",
    )


def mounts_of(engine: Engine) -> list[str]:
    return daemons.mounts_of_shim(Path(engine.info().data_root))


def test_the_engine_has_one_overlay_of_a_server(
    engine: Engine, client: docker.APIClient, wired: str
) -> None:
    before = mounts_of(engine)
    server = start(engine, client, wired, describe(wired))
    merged = str(Path(engine.inspect_storage(server.id).upper).parent / "merged")
    assert mounts_of(engine).count(merged) == 1
    # The engine sees what the server has written, and the mapped owners.
    assert server.shell("rm /etc/hosts && echo new >/etc/hosts") == (0, "")
    assert engine.read_file(server.id, "/etc/hosts") == b"new\n"
    assert Path(merged, "etc").stat().st_uid == FIRST
    client.restart(server.id, timeout=0)
    assert mounts_of(engine).count(merged) == 1
    client.kill(server.id)
    client.wait(server.id)
    engine.remove_container(server.id)
    assert mounts_of(engine) == before


def test_a_restart_behind_novas_back(server: Machine, client: docker.APIClient) -> None:
    assert server.shell("echo kept >/root/file && chown 5 /root/file") == (0, "")
    client.restart(server.id, timeout=0)
    pid = client.inspect_container(server.id)["State"]["Pid"]
    assert Path(f"/proc/{pid}/uid_map").read_text().split() == ["0", str(FIRST), "65536"]
    assert "10.7.0.5/24" in server.run("ip", "address", "show", "eth0")[1]
    assert server.shell("cat /root/file; stat -c %u /root/file") == (0, "kept\n5")


def test_a_rescue(engine: Engine, client: docker.APIClient, wired: str) -> None:
    namespaced.check_rescue(engine, client, wired)


def test_a_device_belongs_to_the_servers_users(
    engine: Engine, client: docker.APIClient, wired: str
) -> None:
    apart = replace(machines.PLAIN, devices=("/dev/loop-control",))
    server = start(engine, client, wired, describe(wired, apart))
    try:
        host = os.stat("/dev/loop-control")
        shown = f"{host.st_uid}:{host.st_gid} {stat.S_IMODE(host.st_mode):o}"
        assert server.run("stat", "-c", "%u:%g %a", "/dev/loop-control") == (0, shown)
        assert server.shell("exec 3</dev/loop-control") == (0, "")
        assert server.shell("exec 3<>/dev/null; head -c1 /dev/zero | wc -c") == (0, "1")
    finally:
        engine.remove_container(f"nova-{wired}")


def test_volumes_keep_their_owners_on_the_disk(
    engine: Engine, client: docker.APIClient, wired: str
) -> None:
    made = client.create_container(machines.IMAGE, "true")["Id"]
    client.commit(made, "volume", "test", changes="VOLUME /data")
    server = start(engine, client, wired, replace(describe(wired), image_id="volume:test"))
    try:
        assert server.shell("stat -c %u:%g /data; echo a >/data/a && chown 5:1000 /data/a") == (
            0,
            "0:0",
        )
        (folder,) = engine.inspect_storage(server.id).volumes.values()
        found = os.stat(Path(folder, "a"))
        assert (found.st_uid, found.st_gid) == (5, 1000)
        client.restart(server.id, timeout=0)
        assert server.run("stat", "-c", "%u:%g", "/data/a") == (0, "5:1000")
    finally:
        engine.remove_container(f"nova-{wired}")


def test_a_password_is_set_while_it_runs(server: Machine, engine: Engine) -> None:
    assert server.run("sed", "-i", "s/^root::/root:x:/", "/etc/passwd") == (0, "")
    assert files.set_password(server.id, server.pid, "root", "$6$new$hash", 2)
    assert server.shell("grep -c '^root:$6$new$hash:' /etc/shadow") == (0, "1")
    assert server.run("stat", "-c", "%u:%g %a", "/etc/shadow") == (0, "0:0 600")
    assert os.stat(Path(engine.inspect_storage(server.id).upper, "etc/shadow")).st_uid == 0


def test_files_by_the_privileged_process(server: Machine) -> None:
    assert server.run("sed", "-i", "s/^root::/root:x:/", "/etc/passwd") == (0, "")
    privileged_calls.run(CALLS, server.id, str(server.pid))
    assert server.shell("grep -c '^root:$6$other$hash:' /etc/shadow") == (0, "1")
    assert server.run("cat", "/etc/resolv.conf") == (0, "nameserver 192.0.2.1")
    names = ("shadow", "resolv.conf", "machine-id")
    shown = server.run("stat", "-c", "%u:%g %a", *(f"/etc/{name}" for name in names))
    assert shown == (0, "0:0 600\n0:0 644\n0:0 444")


def test_capabilities_of_files(engine: Engine, client: docker.APIClient, wired: str) -> None:
    server = start(engine, client, wired, describe(wired))
    try:
        # The image's programs have their capabilities on the disk without a user namespace.
        upper = Path(engine.inspect_storage(server.id).upper)
        assert (
            server.shell("cp /bin/busybox /root/capable && chmod 755 /root /root/capable")[0] == 0
        )
        set_capabilities = (
            "my ($p, $n) = ('/root/capable', 'security.capability'); "
            "my $v = pack('V5', 0x02000001, 1 << 13, 0, 0, 0); "
            f"exit(syscall({native_calls()['setxattr']}, $p, $n, $v, 20, 0) != 0)"
        )
        assert server.run("perl", "-e", set_capabilities) == (0, "")
        attribute = os.getxattr(upper / "root" / "capable", "security.capability")
        assert attribute == struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
        assert server.shell("exec -a grep /root/capable CapEff /proc/self/status", user="user") == (
            0,
            "CapEff:\t0000000000002000",
        )
    finally:
        engine.remove_container(f"nova-{wired}")


def test_a_server_cannot_use_up_the_inotify_instances_of_others(
    engine: Engine, client: docker.APIClient, new_instance_uuid: Callable[[], str]
) -> None:
    call = native_calls()["inotify_init1"]
    hold = f"my $n = 0; $n++ while $n < 900 && syscall({call}, 0) >= 0; print $n"
    servers = [new_instance_uuid() for _ in range(2)]
    with ExitStack() as left:
        found = []
        for instance_uuid in servers:
            left.callback(runtime.delete_namespace, instance_uuid)
            runtime.create_own_namespace(instance_uuid, FIRST, 2 * SIZE)
            left.callback(engine.remove_container, f"nova-{instance_uuid}")
            started = start(engine, client, instance_uuid, describe(instance_uuid))
            assert started.shell(f"perl -e '{hold}' >/most", user="root")[0] == 0
            script = f"$| = 1; {hold}; sleep 1000"
            started.shell(f"perl -e '{script}' >/held & while ! test -s /held; do :; done")
            found.append(started.shell("cat /most /held")[1])
    assert found[0] == found[1]
    assert int(found[0][: len(found[0]) // 2]) >= 100


def test_without_its_user_namespace_it_does_not_start(
    engine: Engine, client: docker.APIClient, wired: str
) -> None:
    namespaces.unmount_namespace(f"{namespace.USER_NAMESPACES}/nova-{wired}")
    before = mounts_of(engine)
    try:
        with pytest.raises(exception.EngineError, match=r"user namespace .* is missing"):
            start(engine, client, wired, describe(wired))
    finally:
        engine.remove_container(f"nova-{wired}")
    assert mounts_of(engine) == before


def test_capabilities_for_a_user_namespace_do_not_leave_it(
    engine: Engine, client: docker.APIClient, wired: str
) -> None:
    apart = replace(machines.PLAIN, capabilities=(*machines.PLAIN.capabilities, "SYS_ADMIN"))
    server = start(engine, client, wired, describe(wired, apart))
    try:
        client.kill(server.id)
        client.wait(server.id)
        runtime.leave_own_namespace(wired)
        namespace.wire_nics(wired, [])
        runtime.bind_container(server.id, wired)
        with pytest.raises(exception.EngineError, match="server need a user namespace"):
            engine.start_container(server.id)
        runtime.create_own_namespace(wired, FIRST, SIZE)
        runtime.bind_container(server.id, wired)
        engine.start_container(server.id)
    finally:
        engine.remove_container(f"nova-{wired}")


def test_a_user_of_the_image_that_has_no_id(
    engine: Engine, client: docker.APIClient, wired: str
) -> None:
    client.commit(
        client.create_container(machines.IMAGE, "true")["Id"],
        "high",
        "test",
        changes="USER 70000:5",
    )
    try:
        with pytest.raises(exception.EngineError, match=r"group 70000, but .* up to 65535"):
            start(engine, client, wired, replace(describe(wired), image_id="high:test"))
    finally:
        engine.remove_container(f"nova-{wired}")


@pytest.fixture(scope="module")
def systemd(engine_url: str, home_network: str) -> Iterator[str]:
    with closing(docker.APIClient(base_url=engine_url, timeout=600)) as client:
        client.import_image(str(systemd_image.archive(home_network)), "own-systemd", "test")
        yield client.inspect_image("own-systemd:test")["Id"]


@pytest.mark.parametrize(
    "permitted", [{"docker:nesting": "true"}, {"docker:capabilities": "SYS_ADMIN"}]
)
def test_sandboxes_of_systemd(
    systemd: str,
    engine: Engine,
    docker_client: docker.APIClient,
    wired: str,
    permitted: dict[str, str],
) -> None:
    """What systemd refuses to start without CAP_SYS_ADMIN, with the sandbox and not without it."""
    limits = Limits(cpu_shares=1024, memory_bytes=1 << 28, swap_bytes=0, pids=200)
    server = Server(engine, docker_client, systemd, wired, limits, permitted)
    engine.put_files(server.id, {"/etc/systemd/system/confined.service": CONFINED})
    runtime.bind_container(server.id, wired)
    server.start()
    assert server.state() == "running", server.run("systemctl", "--failed", "--no-pager")
    assert server.run("systemctl", "start", "confined.service") == "", server.run(
        "journalctl", "--no-pager", "-n", "20"
    )
    uid, log = server.run("cat", "/var/lib/private/dynamic/file").split()
    assert 61184 <= int(uid) <= 65519
    assert log == "bound"
    server.stop()


def test_systemd(systemd: str, engine: Engine, docker_client: docker.APIClient, wired: str) -> None:
    limits = Limits(cpu_shares=1024, memory_bytes=1 << 28, swap_bytes=0, pids=200)
    server = Server(engine, docker_client, systemd, wired, limits)
    runtime.bind_container(server.id, wired)
    for end in ("reboot", "halt"):
        server.start()
        assert server.state() == "running", server.run("systemctl", "--failed", "--no-pager")
        group = server.run("sh", "-c", "systemctl show -p ControlGroup --value dbus").strip()
        assert group == "/system.slice/dbus.service"
        server.stop(end)
