# SPDX-License-Identifier: Apache-2.0
"""Permitted and forbidden operations of a server, tried inside it on a real kernel."""

import json
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest
from oslo_privsep import capabilities as privsep_capabilities

from novadocker.linux import cgroup
from novadocker.virt.docker.engine import seccomp
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.limits import isolation
from tests import CHECKOUT
from tests.engine import machines
from tests.engine.machines import Machine
from tests.engine.system_calls import native_calls

# System call numbers of x86-64 and of 64-bit Arm.
_CALLS = {
    "ptrace": (101, 117),
    "syslog": (103, 116),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "init_module": (175, 105),
    "open_by_handle_at": (304, 265),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "kexec_load": (246, 104),
    "userfaultfd": (323, 282),
    "settimeofday": (164, 170),
    "ioctl": (16, 29),
    "socket": (41, 198),
    "reboot": (169, 142),
}
_EPERM = 1
_EBADF = 9
_EINVAL = 22
_ENOSYS = 38


def system_call(name: str, *arguments: object) -> str:
    """Return a Perl program that makes a system call and prints its error number."""
    number = _CALLS[name][platform.machine() == "aarch64"]
    words = ", ".join(map(str, (number, *arguments)))
    return f"$r = syscall({words}); print $r == -1 ? $!+0 : 0"


@pytest.fixture(scope="module")
def client(engine_url: str) -> Iterator[docker.APIClient]:
    with machines.connected(engine_url, str(shutil.which("runc"))) as found:
        yield found


@pytest.fixture(scope="module")
def plain(engine: Engine, client: docker.APIClient) -> Iterator[Machine]:
    """Yield a container of a flavor without extra specs."""
    with machines.machine(engine, client) as found:
        yield found


def capabilities(pid: int) -> set[str]:
    """Return the names of the capabilities in a process's bounding set."""
    found = re.search(r"CapBnd:\s+([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    mask = int(found[1], 16)
    names = privsep_capabilities.CAPS_BYVALUE
    return {name.removeprefix("CAP_") for number, name in names.items() if mask >> number & 1}


# -- permitted as on a machine of the tenant's ----------------------------------------------------


def test_capabilities_are_the_documented_ones(plain: Machine) -> None:
    assert capabilities(plain.pid) == set(isolation.CAPABILITIES)
    documented = (CHECKOUT / "docs" / "limits.rst").read_text()
    assert ", ".join(isolation.CAPABILITIES) in " ".join(documented.split())


def test_setuid_programs(plain: Machine) -> None:
    assert plain.run("su", "-c", "id -u", "user") == (0, "1000")
    # The setuid bit makes a user root.
    assert plain.run("/usr/bin/su", "-c", "id -u", "root", user="user") == (0, "0")


def test_ping(plain: Machine) -> None:
    code, output = plain.run("ping", "-c1", "-W2", "127.0.0.1")
    assert code == 0, output
    # A user's ping opens this socket: AF_INET, SOCK_DGRAM, IPPROTO_ICMP.
    assert plain.run("perl", "-e", "socket(S, 2, 2, 1) or die", user="user")[0] == 0


def test_tracing(plain: Machine) -> None:
    """A user attaches to its own process, and root to another user's, as ``gdb -p`` does."""
    attach = system_call("ptrace", 16, "$pid", 0, 0) + "; kill 9, $pid"
    own = f"$pid = fork; unless ($pid) {{ sleep 60; exit }} {attach}"
    assert plain.run("perl", "-e", own, user="user") == (0, "0")
    code, pid = plain.shell("sleep 60 >/dev/null 2>&1 & echo $!", user="user")
    assert code == 0, pid
    assert plain.run("perl", "-e", f"$pid = {int(pid)}; {attach}") == (0, "0")


# -- forbidden -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        "mount -t tmpfs none /tmp",
        "mount -o remount,rw /sys",
        "umount /proc/kcore",
        "unshare -m true",
        "unshare -n true",
        "unshare -U true",
        "mknod /tmp/disk b 254 0",
        "mknod /tmp/null c 1 3",
        "ip link set lo down",
        "ip address add 10.9.9.9/24 dev lo",
        "ip link add type veth",
        "hostname other",
        "chroot /proc/1/root true && nsenter -t 1 -m true",
        "echo 1 > /proc/sys/kernel/panic",
        "echo b > /proc/sysrq-trigger",
        "echo core > /proc/sys/kernel/core_pattern",
        "echo 1 > /proc/sys/vm/drop_caches",
        "echo -500 > /proc/self/oom_score_adj",
        "mkdir /sys/fs/cgroup/memory/x",
        "echo 1 > /sys/fs/cgroup/pids/pids.max",
        "cat /dev/mem || cat /dev/kmsg || cat /dev/sda",
        "nice -n -5 true && chrt -f 50 true",
        "swapon /bin/busybox",
        "test -s /proc/kcore || test -s /proc/keys || ls /sys/firmware/*",
        "dmesg -c",
    ],
)
def test_denied(plain: Machine, script: str) -> None:
    code, output = plain.shell(script)
    assert code != 0, output


@pytest.mark.parametrize(
    "call",
    [
        ("syslog", 3, 0, 0),
        ("bpf", 0, 0, 0),
        ("perf_event_open", 0, 0, -1, -1, 0),
        ("init_module", 0, 0, 0),
        ("open_by_handle_at", 0, 0, 0),
        ("keyctl", 0, 0),
        ("add_key", 0, 0, 0, 0, 0),
        ("kexec_load", 0, 0, 0, 0),
        ("userfaultfd", 0),
        ("settimeofday", 0, 0),
    ],
    ids=lambda call: call[0],
)
def test_denied_system_call(plain: Machine, call: Any) -> None:
    assert plain.run("perl", "-e", system_call(*call)) == (0, str(_EPERM))


def test_every_system_call_that_the_profile_does_not_list(plain: Machine) -> None:
    rules = json.loads(seccomp.profile(machines.PLAIN))["syscalls"]
    listed = {name for rule in rules for name in rule["names"]} - {"clone3"}
    denied = {number: name for name, number in native_calls().items() if name not in listed}
    assert "io_uring_setup" in denied.values()
    program = f"""
        for my $number ({", ".join(map(str, denied))}) {{
            syscall($number, -1, -1, -1, -1, -1, -1);
            print $number, " ", $!+0, "\\n";
        }}
    """
    code, output = plain.run("perl", "-e", program)
    assert code == 0, output
    errors = {
        denied[int(number)]: int(error) for number, error in map(str.split, output.split("\n"))
    }
    assert len(errors) == len(denied) > 50
    # runc answers ENOSYS for calls that are newer than the newest listed one.
    assert {name for name, error in errors.items() if error not in (_EPERM, _ENOSYS)} == set()
    assert errors["clone3"] == _ENOSYS


@pytest.mark.parametrize(
    ("call", "error"),
    [
        # LOOP_CLR_FD, LOOP_GET_STATUS64, and TCGETS of a file descriptor that is not open.
        (("ioctl", -1, 0x4C01, 0), _EPERM),
        (("ioctl", -1, 0x1_0000_4C05, 0), _EPERM),
        (("ioctl", -1, 0x5401, 0), _EBADF),
        (("ioctl", -1, 0x1_0000_5401, 0), _EBADF),
        # AF_ALG, AF_VSOCK and AF_UNIX
        (("socket", 38, 5, 0), _EPERM),
        (("socket", 0x1_0000_0026, 5, 0), _EPERM),
        (("socket", 40, 1, 0), _EPERM),
        (("socket", 1, 1, 0), 0),
        # LINUX_REBOOT_CMD_CAD_OFF would change the host's answer to Ctrl-Alt-Del.
        (("reboot", 0xFEE1DEAD, 0x28121969, 0, 0), _EINVAL),
    ],
)
def test_denied_arguments(plain: Machine, call: Any, error: int) -> None:
    assert plain.run("perl", "-e", system_call(*call)) == (0, str(error))


def test_only_devices_that_lead_nowhere(plain: Machine) -> None:
    nodes = plain.shell("find /dev -type b -o -type c")[1].split()
    assert {Path(node).name for node in nodes} <= {
        *("null", "zero", "full", "random", "urandom", "tty", "ptmx", "console", "0")
    }


# -- permitted by a flavor -----------------------------------------------------------------------


def test_what_a_flavor_adds(engine: Engine, client: docker.APIClient) -> None:
    apart = isolation.isolation(
        {
            "docker:capabilities": "NET_ADMIN",
            "docker:devices": "/dev/fuse",
            "docker:ulimit_nofile": "100:200",
            "docker:shm_size_mb": "7",
            "docker:oom_score_adj": "321",
        }
    )
    with machines.machine(engine, client, apart=apart) as found:
        assert capabilities(found.pid) == {*isolation.CAPABILITIES, "NET_ADMIN"}
        assert found.shell("ip address add 10.9.9.9/24 dev lo")[0] == 0
        assert found.shell("head -c0 /dev/fuse && test -c /dev/fuse")[0] == 0
        limits = Path(f"/proc/{found.pid}/limits").read_text()
        assert re.search(r"Max open files +100 +200 ", limits)
        assert Path(f"/proc/{found.pid}/oom_score_adj").read_text() == "321\n"
        assert "size=7168k" in found.shell("grep ' /dev/shm ' /proc/mounts")[1]


_WRITABLE_GROUPS = {
    1: "for f in /sys/fs/cgroup/*; do mount -o remount,bind,rw $f; done",
    2: "mount -o remount,bind,rw /sys/fs/cgroup",
}
"""The command that lets a server with the host's root start an engine, by version of cgroups."""

_NESTED = """
set -e
mkdir -p /inner/rootfs/bin /run
cp /bin/busybox /inner/rootfs/bin
cd /inner
runc spec
sed -i 's/"terminal": true/"terminal": false/; s|"sh"|"/bin/busybox", "echo", "made inside"|' \
    config.json
runc run inner
"""


def test_nesting_with_the_power_of_the_hosts_root(
    engine: Engine, client: docker.APIClient, plain: Machine
) -> None:
    code, output = plain.shell(_NESTED)
    assert (code, "made inside" in output) == (1, False)
    apart = isolation.isolation({"docker:nesting": "host"})
    with machines.machine(engine, client, apart=apart) as found:
        # The documentation recommends these commands.
        assert found.shell(_WRITABLE_GROUPS[cgroup.version()]) == (0, "")
        assert found.shell(_NESTED) == (0, "made inside")
        # The host's disk remains inaccessible.
        code, output = found.shell("mknod /tmp/disk b 254 0 && head -c1 /tmp/disk")
        assert "not permitted" in output


def test_no_more_devices_by_a_capability(engine: Engine, client: docker.APIClient) -> None:
    apart = replace(machines.PLAIN, capabilities=(*isolation.CAPABILITIES, "MKNOD"))
    with machines.machine(engine, client, apart=apart) as found:
        assert found.shell("mknod /tmp/disk b 254 0")[0] == 0
        assert "not permitted" in found.shell("head -c1 /tmp/disk")[1]
