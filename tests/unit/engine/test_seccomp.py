# SPDX-License-Identifier: Apache-2.0
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from novadocker.virt.docker.engine import seccomp
from novadocker.virt.docker.limits import isolation
from novadocker.virt.docker.model import Isolation

PLAIN = isolation.isolation({})
MOUNTS = isolation.isolation({"docker:capabilities": "SYS_ADMIN"})
NESTING = isolation.isolation({"docker:nesting": "true"})

# linux/loop.h
LOOP_CLR_FD, LOOP_GET_STATUS64, LOOP_CONFIGURE, LOOP_CTL_GET_FREE = 0x4C01, 0x4C05, 0x4C0A, 0x4C82
TCGETS, TIOCGWINSZ, FIONREAD, BLKGETSIZE64, SIOCGIFNAME = 0x5401, 0x5413, 0x541B, 0x80081272, 0x8910

# What a server must not call: the kernel's other interfaces to the host, and interfaces with a
# history of faults. Those that Linux removed are not here.
_DENIED = """
acct add_key bpf clock_settime clock_settime64 clone3 delete_module fanotify_init finit_module
fsconfig fsmount fsopen fspick get_mempolicy init_module io_uring_enter io_uring_register
io_uring_setup ioperm iopl kexec_file_load kexec_load keyctl lookup_dcookie lsm_get_self_attr
lsm_list_modules lsm_set_self_attr mbind migrate_pages mount mount_setattr move_mount move_pages
nfsservctl open_by_handle_at open_tree open_tree_attr perf_event_open pivot_root quotactl
quotactl_fd request_key set_mempolicy set_mempolicy_home_node setdomainname sethostname
setns settimeofday stime swapoff swapon sysfs syslog umount umount2 unshare userfaultfd uselib ustat
vhangup vm86 vm86old
"""
DENIED = _DENIED.split()

_TESTS = {
    "SCMP_CMP_EQ": lambda value, test: value == test["value"],
    "SCMP_CMP_MASKED_EQ": lambda value, test: value & test["value"] == test["valueTwo"],
}


def answer(isolated: Isolation, call: str, *arguments: int) -> str:
    """Return the action of a profile for a system call, as seccomp(2) computes it."""
    found: dict[str, Any] = json.loads(seccomp.profile(isolated))
    for rule in found["syscalls"]:
        if call in rule["names"] and all(
            _TESTS[test["op"]](arguments[test["index"]], test) for test in rule.get("args", ())
        ):
            return str(rule["action"])
    return str(found["defaultAction"])


def allows(isolated: Isolation, call: str, *arguments: int) -> bool:
    return answer(isolated, call, *arguments) == "SCMP_ACT_ALLOW"


@pytest.mark.parametrize("call", DENIED)
def test_a_server_may_not_call(call: str) -> None:
    assert not allows(PLAIN, call, 0, 0, 0)


def allowed_names(*capabilities: str) -> set[str]:
    """Return the calls that a profile allows, if only with some arguments."""
    rules = json.loads(seccomp.profile(Isolation(capabilities=capabilities)))["syscalls"]
    return {name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}


def moby_names() -> dict[str, set[str]]:
    """Return the calls of Moby's default profile by the capability that they need, or by ""."""
    content = Path(__file__).with_name("moby_calls.txt").read_text()
    sections = re.findall(r"^\[(\w*)\]\n((?:\w[\w ]*\n)+)", content, re.MULTILINE)
    return {capability: set(names.split()) for capability, names in sections}


def test_nothing_is_allowed_that_moby_denies() -> None:
    moby = moby_names()
    assert len(moby[""]) > 350
    assert allowed_names() <= moby[""]
    for capability in moby.keys() - {"", "SYS_ADMIN"}:
        assert allowed_names(capability) <= moby[""] | moby[capability], capability
    # Mounts come with the call that systemd moves the root by, and with the newest one.
    more = allowed_names("SYS_ADMIN") - moby[""] - moby["SYS_ADMIN"]
    assert more == {"open_tree_attr", "pivot_root"}


def test_no_call_is_added_by_accident() -> None:
    rules = json.loads(seccomp.profile(PLAIN))["syscalls"]
    names = {name for rule in rules for name in rule["names"]}
    assert len(names) == 379
    assert {"read", "execve", "futex", "chroot", "ptrace", "landlock_create_ruleset"} <= names
    assert names & set(DENIED) == {"clone3"}


def test_what_a_capability_adds() -> None:
    for capability, call in (
        ("SYS_BOOT", "reboot"),
        ("SYS_NICE", "mbind"),
        ("SYS_PACCT", "acct"),
        ("SYS_TTY_CONFIG", "vhangup"),
        ("SYS_CHROOT", "chroot"),
        ("SYS_PTRACE", "pidfd_getfd"),
    ):
        assert allows(Isolation(capabilities=(capability,)), call)
        assert not allows(Isolation(capabilities=("NET_ADMIN",)), call)


_MOUNTS = """
fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree open_tree_attr
setdomainname sethostname umount umount2
"""
_NAMESPACES = "clone3 pivot_root setns unshare"


def test_mounts_come_with_namespaces() -> None:
    added = {call for call in DENIED if allows(MOUNTS, call, 0, 0, 0)}
    assert added == {*_MOUNTS.split(), *_NAMESPACES.split()}
    assert allows(MOUNTS, "clone", 0x10000000)
    assert not allows(MOUNTS, "socket", 38)


def test_nesting_adds_only_mounts_and_namespaces() -> None:
    added = {call for call in DENIED if allows(NESTING, call, 0, 0, 0)}
    # The last ones are of capabilities that the kernel does not grant in a user namespace.
    policies = {"get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"}
    assert added == {*_MOUNTS.split(), *_NAMESPACES.split(), *policies, "acct", "vhangup"}
    assert allows(NESTING, "clone", 0x10000000)
    assert not allows(NESTING, "socket", 38)
    assert not allows(NESTING, "ioctl", 3, LOOP_CLR_FD)


@pytest.mark.parametrize("call", ["add_key", "keyctl", "request_key"])
def test_nested_engines_find_no_keyrings(call: str) -> None:
    """runc reports any other error than ENOSYS."""
    rules = json.loads(seccomp.profile(NESTING))["syscalls"]
    (rule,) = (rule for rule in rules if call in rule["names"])
    assert (rule["action"], rule["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)


@pytest.mark.parametrize("high", [0, 1 << 32, 0xFFFFFFFF << 32])
def test_requests_of_loop_devices(high: int) -> None:
    """The kernel ignores the upper half of the register."""
    for request in (LOOP_CLR_FD, LOOP_GET_STATUS64, LOOP_CONFIGURE, LOOP_CTL_GET_FREE):
        assert not allows(PLAIN, "ioctl", 3, high | request)
    for request in (TCGETS, TIOCGWINSZ, FIONREAD, BLKGETSIZE64, SIOCGIFNAME):
        assert allows(PLAIN, "ioctl", 3, high | request)
    for kind in range(256):
        assert allows(PLAIN, "ioctl", 3, high | kind << 8) is (kind != ord("L"))


def test_a_flavor_that_gives_a_loop_device() -> None:
    for path, allowed in (("/dev/loop7", True), ("/dev/loop-control", True), ("/dev/fuse", False)):
        found = replace(PLAIN, devices=("/dev/null", path))
        assert allows(found, "ioctl", 3, LOOP_CLR_FD) is allowed
        assert allows(found, "ioctl", 3, TCGETS)


@pytest.mark.parametrize("high", [0, 1 << 32])
def test_address_families(high: int) -> None:
    allowed = {family for family in range(256) if allows(PLAIN, "socket", high | family)}
    assert allowed == set(range(64)) - {38, 40}
    assert not allows(PLAIN, "socket", high | 0xFFFFFFFF)


def test_clones_and_personalities() -> None:
    clone_thread, clone_newuser, clone_newnet = 0x3D0F00, 0x10000000, 0x40000000
    assert allows(PLAIN, "clone", clone_thread)
    assert not allows(PLAIN, "clone", clone_thread | clone_newuser)
    assert not allows(PLAIN, "clone", clone_newnet)
    addr_no_randomize = 0x40000
    assert allows(PLAIN, "personality", 0xFFFFFFFF)
    assert not allows(PLAIN, "personality", addr_no_randomize)


def test_clone3_is_unknown_rather_than_forbidden() -> None:
    """glibc calls clone if clone3 fails with ENOSYS, and reports any other error."""
    rules = json.loads(seccomp.profile(PLAIN))["syscalls"]
    (rule,) = (rule for rule in rules if "clone3" in rule["names"])
    assert (rule["action"], rule["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)
