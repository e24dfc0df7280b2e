# SPDX-License-Identifier: Apache-2.0
import json
import os
import select
import socket
import sys
from collections.abc import Callable
from concurrent import futures
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from keystoneauth1 import exceptions as keystone_exceptions
from nova import conf
from nova import exception as nova_exception
from nova.conf import compute, configdrive, netconf, neutron
from oslo_config import cfg
from oslo_upgradecheck.upgradecheck import Code, Result
from vif_plug_ovs.ovs import OvsPlugin

from novadocker import _loader, exception
from novadocker import conf as docker_conf
from novadocker.cmd import checks, privileged, probes, status
from novadocker.cmd.checks import Agent, Chassis
from novadocker.virt.docker.guest import lxcfs
from novadocker.virt.docker.guest.lxcfs import View
from novadocker.virt.docker.host.user_namespaces import Trial
from novadocker.virt.docker.model import EngineInfo
from tests import CHECKOUT
from tests.unit import fakes, test_etc

SUCCESS, WARNING, FAILURE = Code.SUCCESS, Code.WARNING, Code.FAILURE


KERNEL = checks.Kernel("6.1.0", systemd=True, loop_devices=True, selinux=False)


def says(result: Result, code: Code, *parts: str) -> bool:
    """Return True if a result has the code and one line with all the parts."""
    assert "\n" not in result.details
    return result.code is code and all(part in result.details for part in parts)


def imported(**changes: Any) -> checks.DriverImport:
    found = checks.DriverImport(
        origin=_loader.__file__, error="", hooked=True, folder="/opt/site", site_folder="/usr/site"
    )
    return replace(found, **changes)


def test_import_succeeds() -> None:
    assert says(checks.check_import(imported()), SUCCESS, "/opt/site")


def test_import_of_another_package() -> None:
    other = imported(origin="/x/nova/virt/docker/__init__.py")
    assert says(checks.check_import(other), FAILURE, "remove /x/nova/virt/docker/__init__.py")


def test_import_that_fails_within_the_driver() -> None:
    broken = imported(origin=None, error="No module named 'pyroute2'")
    assert says(checks.check_import(broken), FAILURE, "install", "'pyroute2'")


def test_import_from_a_folder_without_the_loader(tmp_path: Path) -> None:
    bare = imported(origin=None, error="no", hooked=False, folder=str(tmp_path))
    assert says(checks.check_import(bare), FAILURE, str(tmp_path), "with pip")


def test_import_from_a_folder_that_is_no_site_folder(tmp_path: Path) -> None:
    (tmp_path / "novadocker-loader.pth").touch()
    unread = imported(origin=None, error="no", hooked=False, folder=str(tmp_path))
    line = f'import site; site.addsitedir("{tmp_path}") to /usr/site/novadocker.pth'
    assert says(checks.check_import(unread), FAILURE, line)


NOVA, DEBIAN = "/etc/nova/nova.conf", "/etc/nova/nova-compute.conf"


@pytest.mark.parametrize(
    ("driver", "files", "origin", "code", "part"),
    [
        ("docker.DockerDriver", [NOVA, DEBIAN], DEBIAN, SUCCESS, f"in {DEBIAN}"),
        ("docker.DockerDriver", [NOVA], NOVA, WARNING, f"did not read {DEBIAN}, which"),
        ("libvirt.LibvirtDriver", [NOVA, DEBIAN], DEBIAN, FAILURE, f"LibvirtDriver in {DEBIAN}: "),
        (None, [NOVA, DEBIAN], "", FAILURE, f"in [DEFAULT] ({NOVA}, {DEBIAN})"),
        (None, [], "", FAILURE, "--config-file"),
    ],
)
def test_configuration(
    driver: str | None, files: list[str], origin: str, code: Code, part: str
) -> None:
    found = checks.check_configuration(driver, files, origin, [NOVA, DEBIAN])
    assert says(found, code, part)


def test_the_file_that_sets_the_driver_is_named(run: Callable[..., Any], tmp_path: Path) -> None:
    _, rows = run(fakes.INFO)
    file = f"{tmp_path}/nova.conf"
    assert rows["Configuration"]["details"].endswith(f"in {file}; read were {file}")


FOLDER = "/etc/nova/nova-compute.conf.d"


def nova(
    number: int = 7,
    paths: tuple[str, ...] = (NOVA, DEBIAN, FOLDER),
    python: str = "/usr/bin/python3",
) -> checks.NovaProcess:
    return checks.NovaProcess(number, python, paths)


@pytest.mark.parametrize(
    ("processes", "code", "parts"),
    [
        ([], SUCCESS, ["does not run"]),
        ([nova()], SUCCESS, ["process 7"]),
        ([nova(paths=(NOVA,))], WARNING, [f"process 7 reads {NOVA};", "--config-dir"]),
        # The order decides which file wins.
        ([nova(paths=(FOLDER, NOVA, DEBIAN))], WARNING, [f"reads {FOLDER}, {NOVA}, {DEBIAN};"]),
        # One of two hosts on a machine of tests.
        ([nova(paths=("/2",)), nova(8)], SUCCESS, ["process 8"]),
        ([nova(python="/opt/nova/bin/python3")], WARNING, ["/opt/nova"]),
        ([nova(python="")], SUCCESS, ["process 7"]),
        # Other names of this interpreter: a second link, and the argument of env(1).
        ([nova(python="/usr/bin/python3.11")], SUCCESS, ["process 7"]),
        ([nova(python="python3")], SUCCESS, ["process 7"]),
        ([nova(python="/opt/nova/bin/python3"), nova(8)], SUCCESS, ["process 7"]),
    ],
)
def test_the_running_nova_compute(
    processes: list[checks.NovaProcess], code: Code, parts: list[str]
) -> None:
    read = (NOVA, DEBIAN, FOLDER)
    assert says(checks.check_process(processes, "/usr/bin/python3", read), code, *parts)


@pytest.fixture
def defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nova's configuration files are those of Debian, and there is one directory."""

    def find(*paths: str) -> Callable[..., list[str]]:
        def found(project: str, prog: str) -> list[str]:
            assert (project, prog) == ("nova", "nova-compute")
            return list(paths)

        return found

    monkeypatch.setattr(probes.cfg, "find_config_files", find(NOVA, DEBIAN))
    monkeypatch.setattr(probes.cfg, "find_config_dirs", find(FOLDER))


@pytest.mark.parametrize(
    ("arguments", "paths"),
    [
        ("", (NOVA, DEBIAN, FOLDER)),
        ("upgrade check --json", (NOVA, DEBIAN, FOLDER)),
        # Debian's unit: its files win over the directory.
        (f"--config-file={NOVA} --config-file={DEBIAN}", (FOLDER, NOVA, DEBIAN)),
        ("--config-dir /d --log-file=/l", (NOVA, DEBIAN, "/d")),
        ("--config-dir /d --debug --config-file /b", ("/d", "/b")),
    ],
)
@pytest.mark.usefixtures("defaults")
def test_the_order_of_the_configuration_files(arguments: str, paths: tuple[str, ...]) -> None:
    assert probes.configuration_paths(arguments.split()) == paths


@pytest.mark.parametrize("order", [("file", "dir"), ("dir", "file"), ("file",), ("dir",), ()])
def test_the_order_is_the_one_of_oslo_config(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, order: tuple[str, ...]
) -> None:
    """The last of the paths sets the option."""
    for name in ("default", "given"):
        (tmp_path / f"{name}.d").mkdir()
        for path in (tmp_path / f"{name}.conf", tmp_path / f"{name}.d" / "x.conf"):
            path.write_text(f"[DEFAULT]\nwinner = {path}\n")
    files, folders = [f"{tmp_path}/default.conf"], [f"{tmp_path}/default.d"]
    monkeypatch.setattr(probes.cfg, "find_config_files", lambda **_: files)
    monkeypatch.setattr(probes.cfg, "find_config_dirs", lambda **_: folders)
    paths = {"file": f"{tmp_path}/given.conf", "dir": f"{tmp_path}/given.d"}
    arguments = [f"--config-{kind}={paths[kind]}" for kind in order]
    options = cfg.ConfigOpts()
    options.register_opt(cfg.StrOpt("winner"))
    options(arguments, default_config_files=files, default_config_dirs=folders)
    assert options.winner.startswith(probes.configuration_paths(arguments)[-1])


@pytest.mark.parametrize(
    ("words", "process"),
    [
        (["/usr/bin/python3", "/usr/bin/nova-compute"], nova()),
        (["python3", "-u", "/x/nova-compute"], nova(python="python3")),
        (["/usr/bin/nova-compute", "--config-file", "/a"], nova(7, (FOLDER, "/a"), "")),
        (["/usr/bin/python3", "/usr/bin/nova-compute", "--config-file"], None),
        (["vi", "/x/nova-compute"], None),
        (["/usr/bin/python3", "-m", "x", "nova-compute"], None),
        ([], None),
    ],
)
@pytest.mark.usefixtures("defaults")
def test_processes_of_nova_compute_are_found(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    process: checks.NovaProcess | None,
) -> None:
    listed = [
        SimpleNamespace(pid=7, info={"cmdline": words}),
        SimpleNamespace(pid=8, info={"cmdline": None}),
    ]
    monkeypatch.setattr(probes.psutil, "process_iter", lambda _: listed)
    for number in ("self", "7", "8"):
        write_ids(tmp_path / number, b"7")
    assert probes.find_processes(tmp_path) == ([process] if process else [])


def write_ids(folder: Path, ids: bytes) -> None:
    folder.mkdir()
    (folder / "status").write_bytes(b"Name:\tx\\nNSpid: 1 2 3\nNSpid:\t" + ids + b"\n")


@pytest.mark.usefixtures("defaults")
def test_a_process_of_a_server_is_not_taken_for_nova_compute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["/usr/bin/nova-compute", "--config-file", "\x1b[2J"]
    listed = [SimpleNamespace(pid=number, info={"cmdline": words}) for number in (7, 8)]
    monkeypatch.setattr(probes.psutil, "process_iter", lambda _: listed)
    write_ids(tmp_path / "self", b"1")
    # A server's processes have an id of its namespace, too; process 8 has ended.
    write_ids(tmp_path / "7", b"7\t1")
    assert probes.find_processes(tmp_path) == []


def node(**changes: Any) -> checks.Node:
    return replace(checks.Node("host1", "host1"), **changes)


@pytest.mark.parametrize(
    ("found", "code", "parts"),
    [
        (node(), SUCCESS, ["the node is host1", "creates its UUID"]),
        (node(hostname="host1.example.org"), SUCCESS, ["host name is host1.example.org"]),
        (node(uuid="u1"), SUCCESS, ["u1", "does not know"]),
        (node(uuid="u1", name_of_uuid="host1", uuid_of_name="u1"), SUCCESS, ["in Placement"]),
        # The host ran libvirt, which named the node after the first name in /etc/hosts.
        (
            node(uuid="u1", name_of_uuid="host1.example.org"),
            FAILURE,
            ["Possible rename detected", "set [DEFAULT] host to host1.example.org", "compute_id"],
        ),
        # The file was lost, as after a new installation of the host.
        (node(uuid_of_name="u1"), FAILURE, ["UUID u1 in Placement", "no compute_id"]),
        # Another host has the name.
        (node(uuid="u2", uuid_of_name="u1"), FAILURE, ["another [DEFAULT] host"]),
        (node(error="Placement can't be asked: away"), WARNING, ["asked: away"]),
    ],
)
def test_the_compute_node(found: checks.Node, code: Code, parts: list[str]) -> None:
    assert says(checks.check_node(found), code, *parts)


class FakePlacement:
    """The adapter of keystoneauth; ``providers`` are name and UUID of each one."""

    def __init__(self, *providers: tuple[str, str]) -> None:
        self.providers = providers
        self.session = SimpleNamespace(timeout=None)

    def get(self, path: str, params: dict[str, str], microversion: str, raise_exc: bool) -> Any:
        assert (path, raise_exc) == ("/resource_providers", True)
        assert self.session.timeout
        found = [{"name": name, "uuid": uuid} for name, uuid in self.providers]
        ((key, value),) = params.items()
        found = [provider for provider in found if provider[key] == value]
        return SimpleNamespace(json=lambda: {"resource_providers": found})


UUID = "0d2b3f4e-6a5c-4d1e-9f80-112233445566"


def read_node(
    monkeypatch: pytest.MonkeyPatch, folder: Path, content: str | None, placement: Any
) -> checks.Node:
    if content is not None:
        (folder / "compute_id").write_text(content)
    conf.CONF.set_override("state_path", str(folder))
    conf.CONF.set_override("host", "host1")
    conf.CONF(["--config-dir", str(folder)], project="nova", default_config_files=[])
    monkeypatch.setattr(probes.socket, "gethostname", lambda: "kernel")
    monkeypatch.setattr(probes.utils, "get_ksa_adapter", lambda _: placement())
    try:
        return probes.read_node(conf.CONF)
    finally:
        conf.CONF.reset()
        conf.CONF.clear_override("state_path")
        conf.CONF.clear_override("host")


@pytest.mark.parametrize(
    ("content", "providers", "wanted"),
    [
        (None, [], {}),
        (None, [("host1", "u1")], {"uuid_of_name": "u1"}),
        (f"{UUID}\n", [], {"uuid": UUID}),
        (UUID, [("old", UUID), ("host1", "u1")], {"name_of_uuid": "old", "uuid_of_name": "u1"}),
    ],
)
def test_the_node_is_read_from_its_file_and_placement(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    content: str | None,
    providers: list[tuple[str, str]],
    wanted: dict[str, str],
) -> None:
    found = read_node(monkeypatch, tmp_path, content, lambda: FakePlacement(*providers))
    uuid = UUID if content else ""
    assert found == replace(checks.Node("host1", "kernel", uuid), **wanted)


def test_a_damaged_file_of_the_node_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = read_node(monkeypatch, tmp_path, "no UUID", FakePlacement)
    assert f"{tmp_path}/compute_id" in found.error


@pytest.mark.parametrize(
    "error",
    [
        keystone_exceptions.ConnectFailure("away"),
        keystone_exceptions.MissingAuthPlugin(),
        nova_exception.ConfGroupForServiceTypeNotFound(stype="placement"),
    ],
)
def test_without_placement_the_node_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def fail() -> Any:
        raise error

    found = read_node(monkeypatch, tmp_path, UUID, fail)
    assert found.uuid == UUID
    assert found.error.startswith("Placement can't be asked: ")


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"resource_providers": [7]}',
        b'{"resource_providers": [{}]}',
    ],
)
def test_a_malformed_answer_of_placement_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: bytes
) -> None:
    class Malformed(FakePlacement):
        def get(self, *_: object, **__: object) -> Any:
            return SimpleNamespace(json=lambda: json.loads(body))

    found = read_node(monkeypatch, tmp_path, UUID, Malformed)
    assert found.error.startswith("Placement sent a malformed answer: ")


@pytest.mark.parametrize(
    ("changes", "missing", "code", "part"),
    [
        ({}, [], SUCCESS, "kernel 6.1.0"),
        ({}, ["zstd"], WARNING, "missing: zstd"),
        ({"systemd": False}, [], WARNING, "nsdelegate"),
        ({"loop_devices": False}, [], WARNING, "/dev/loop-control"),
    ],
)
def test_kernel(changes: dict[str, bool], missing: list[str], code: Code, part: str) -> None:
    assert says(checks.check_kernel(replace(KERNEL, **changes), missing), code, part)


@pytest.mark.parametrize(
    ("mounts", "systemd"),
    [
        ("cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,name=systemd 0 0", True),
        ("cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0", True),
        ("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\ncgroup /c cgroup rw,cpu 0 0", False),
        # Names that a user chose.
        ("tmpfs /mnt/a\x85/mnt/b\x0c\x1c\u2028 tmpfs rw 0 0", False),
        ("tmpfs /mnt/\udcff tmpfs rw 0 0", False),
        ("x\x0cx cgroup2 rw,nsdelegate /mnt tmpfs rw 0 0", False),
    ],
)
def test_the_kernel_is_read(tmp_path: Path, mounts: str, systemd: bool) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    lines = f"/dev/sda1 / ext4 rw 0 0\n{mounts}\n".encode(errors="surrogateescape")
    (tmp_path / "proc/self/mounts").write_bytes(lines)
    found = probes.read_kernel(tmp_path)
    assert (found.systemd, found.loop_devices, found.selinux) == (systemd, False, False)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/loop-control").touch()
    (tmp_path / "sys/fs/selinux").mkdir(parents=True)
    (tmp_path / "sys/fs/selinux/enforce").write_text("1")
    found = probes.read_kernel(tmp_path)
    assert (found.loop_devices, found.selinux) == (True, True)


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("gzip", "xz"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probes.missing_programs("mkisofs") == ["mkisofs", "zstd", "sudo", "setpriv", "unshare"]


@pytest.mark.parametrize(
    ("engine", "kernel", "code", "part"),
    [
        ({}, {}, SUCCESS, "no mandatory access control"),
        ({"apparmor": True}, {}, SUCCESS, "docker-default"),
        ({}, {"selinux": True}, WARNING, "ausearch"),
        ({"selinux": True}, {"selinux": True}, FAILURE, "remove selinux-enabled"),
    ],
)
def test_confinement(
    engine: dict[str, bool], kernel: dict[str, bool], code: Code, part: str
) -> None:
    found = checks.check_confinement(replace(fakes.INFO, **engine), replace(KERNEL, **kernel))
    assert says(found, code, part)
    assert says(checks.check_confinement(None, KERNEL), WARNING, "unknown")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"rootless": True}, "rootless"),
        ({"data_root": "/var/snap/docker/common/var-lib-docker"}, "is a snap"),
    ],
)
def test_engines_that_cannot_start_servers(changes: dict[str, Any], part: str) -> None:
    info = replace(fakes.INFO, **changes)
    assert says(checks.check_engine("unix:///x", "nova", info, ""), FAILURE, part)


@pytest.mark.parametrize(
    "error", ["OSError: [Errno 28] No space left on device", "No usable temporary directory found"]
)
def test_a_full_directory_for_temporary_files_is_named(error: str) -> None:
    call = checks.PrivilegedCall("nova", False, ("sudo", "privsep-helper"), error)
    found = checks.check_privileges(call, "etc")
    assert says(found, FAILURE, error, "which has no space")
    assert "sudoers" not in found.details


@pytest.mark.parametrize(
    ("info", "error", "bypass", "code", "parts"),
    [
        (fakes.INFO, "", "", SUCCESS, ["20.10.24", checks.PROXY_URL]),
        (fakes.INFO, "", "/run/docker.sock", WARNING, ["/run/docker.sock", "gpasswd"]),
        (None, "PermissionError(13, 'Permission denied')", "", FAILURE, ["SocketGroup"]),
    ],
)
def test_engine_behind_the_proxy(
    info: EngineInfo | None, error: str, bypass: str, code: Code, parts: list[str]
) -> None:
    assert says(checks.check_engine(checks.PROXY_URL, "nova", info, error, bypass), code, *parts)


@pytest.mark.parametrize(
    ("info", "error", "code", "parts"),
    [
        (fakes.INFO, "", SUCCESS, ["20.10.24", "API 1.41", "unix:///x"]),
        (None, "PermissionError(13, 'Permission denied')", FAILURE, ["user nova", "usermod"]),
        (None, "does not answer: refused", FAILURE, ["refused; start the engine"]),
        (None, "speaks API 1.40", FAILURE, ["speaks API 1.40"]),
    ],
)
def test_engine(info: EngineInfo | None, error: str, code: Code, parts: list[str]) -> None:
    assert says(checks.check_engine("unix:///x", "nova", info, error), code, *parts)


@pytest.mark.parametrize(
    ("runtimes", "error", "code", "parts"),
    [
        ({"ours": "/usr/bin/shim"}, "", SUCCESS, ["/usr/bin/shim"]),
        ({"ours": "/usr/bin/shim"}, "broken", FAILURE, ["which is broken", "daemon.json"]),
        ({"ours": "shim"}, "", FAILURE, ["absolute"]),
        ({"runc": "runc"}, "broken", FAILURE, ["no runtime 'ours'", "novadocker-runtime"]),
    ],
)
def test_runtime(runtimes: dict[str, str], error: str, code: Code, parts: list[str]) -> None:
    info = replace(fakes.INFO, runtimes=runtimes)
    assert says(checks.check_runtime(info, "ours", error), code, *parts)


def test_the_shim_of_this_package_prepares_containers() -> None:
    assert probes.ask_shim(str(CHECKOUT / "novadocker/runtime/novadocker-runtime")) == ""


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (None, "not an executable file"),
        ("#!/bin/sh\necho no Python >&2; exit 1", "not able to prepare containers: no Python"),
        ("#!/bin/sh\nexit 127", "not able to prepare containers: exit status 127"),
        ("#!/missing", "not able to prepare containers: "),
        ("#!/bin/sh\nexec sleep 100", "not able to prepare containers: "),
    ],
)
def test_a_shim_that_does_not_prepare_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, error: str
) -> None:
    monkeypatch.setattr(probes, "_SHIM_SECONDS", 2)
    path = tmp_path / "shim"
    if script is not None:
        path.write_text(script)
        path.chmod(0o755)
    assert probes.ask_shim(str(path)).startswith(error)


def test_live_restore() -> None:
    assert says(checks.check_live_restore(fakes.INFO), SUCCESS)
    off = replace(fakes.INFO, live_restore=False)
    assert says(checks.check_live_restore(off), WARNING, '"live-restore": true')


@pytest.mark.parametrize(
    ("driver", "filesystem", "sized", "code", "part"),
    [
        ("overlay2", "xfs", True, SUCCESS, "overlay2 gives each server the disk of its flavor"),
        ("btrfs", "", True, SUCCESS, "btrfs"),
        ("overlay2", "xfs", False, WARNING, "overlay2 on xfs can't limit the disk"),
        ("overlay2", "extfs", False, WARNING, "overlay2 on extfs can't limit the disk"),
        ("overlayfs", "", False, WARNING, "this file system can't limit the disk"),
        ("vfs", "extfs", False, WARNING, '"overlay2"'),
    ],
)
def test_storage(driver: str, filesystem: str, sized: bool, code: Code, part: str) -> None:
    info = replace(fakes.INFO, storage_driver=driver, backing_filesystem=filesystem)
    assert says(checks.check_storage(info, sized), code, part)


@pytest.mark.parametrize(
    ("version", "warnings", "code", "part"),
    [
        ("1", (), SUCCESS, "cgroup v1"),
        ("2", (), SUCCESS, "cgroup v2"),
        ("2", ("WARNING: bridge-nf-call-iptables is disabled",), SUCCESS, "cgroup v2"),
        ("1", ("WARNING: No swap limit support",), WARNING, "No swap limit support"),
        ("1", ("WARNING: No cpu cfs quota support",), WARNING, "No cpu cfs quota"),
        ("2", ("WARNING: No cpuset support",), WARNING, "cgroup v2, but No cpuset"),
    ],
)
def test_cgroups(version: str, warnings: tuple[str, ...], code: Code, part: str) -> None:
    info = replace(fakes.INFO, cgroup_version=version, warnings=warnings)
    assert says(checks.check_cgroups(info), code, part)


def test_seccomp() -> None:
    assert says(checks.check_seccomp(fakes.INFO), SUCCESS)
    without = replace(fakes.INFO, seccomp=False)
    assert says(checks.check_seccomp(without), FAILURE, "only servers with docker:nesting=host")


def test_containerds_image_store() -> None:
    info = replace(fakes.INFO, containerd_store=True, storage_driver="overlayfs")
    setting = '"containerd-snapshotter": false'
    parts = ("containerd's image store", "servers run", "rescues", "limits the disk", setting)
    assert says(checks.check_storage(info, False), WARNING, *parts)
    # The sample's storage driver with Engine 28 and the feature, which loads no image.
    info = replace(info, storage_driver="overlay2")
    assert says(checks.check_storage(info, True), FAILURE, "snapshotter overlay2", setting)


@pytest.mark.parametrize(
    ("chassis", "code", "part"),
    [
        (None, WARNING, "unknown"),
        (Chassis("", ""), SUCCESS, "does not use OVN"),
        (Chassis("tcp:192.0.2.1:6642", "web-1"), SUCCESS, "web-1"),
        (Chassis("tcp:192.0.2.1:6642", ""), FAILURE, "OVN knows this host as web-1.example.com"),
        (Chassis("tcp:192.0.2.1:6642", "other"), FAILURE, "external_ids:hostname=web-1"),
    ],
)
def test_ovn(chassis: Chassis | None, code: Code, part: str) -> None:
    assert says(checks.check_ovn(chassis, "web-1", "web-1.example.com"), code, part)


def test_ovn_limits_bandwidth_itself() -> None:
    call = checks.PrivilegedCall("nova", False, (), "", missing_means=("act_police",))
    chassis = Chassis("tcp:192.0.2.1:6642", "web-1")
    assert says(checks.check_bandwidth({"br-int": ""}, "br-int", call, chassis), SUCCESS, "OVN")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], Chassis("", "")),
        (
            [["ovn-remote", "tcp:192.0.2.1:6642"], ["hostname", "web-1"]],
            Chassis("tcp:192.0.2.1:6642", "web-1"),
        ),
    ],
)
def test_reading_the_chassis(
    monkeypatch: pytest.MonkeyPatch, settings: list[list[str]], expected: Chassis
) -> None:
    rows = [[{"external_ids": ["map", settings]}]]
    monkeypatch.setattr(probes.ovsdb, "select", lambda *_: rows)
    assert probes.read_chassis("tcp:127.0.0.1:6640") == expected


def test_reading_the_chassis_without_a_switch() -> None:
    assert probes.read_chassis("tcp:127.0.0.1:1") is None


OVS_AGENT = "Open vSwitch agent"


@pytest.mark.parametrize(
    ("agents", "error", "code", "parts"),
    [
        ([Agent(OVS_AGENT, "web-1", True)], "", SUCCESS, ["Open vSwitch agent", "web-1"]),
        ([Agent(OVS_AGENT, "web-1", False)], "", WARNING, ["not alive"]),
        ([], "", WARNING, ["no agent on web-1", "mechanism driver novadocker"]),
        ([Agent(OVS_AGENT, "web-2", True)], "", WARNING, ["no agent on web-1"]),
        # The agent has the fully qualified name.
        (
            [Agent(OVS_AGENT, "web-2", True), Agent(OVS_AGENT, "web-1.example.com", True)],
            "",
            FAILURE,
            ["calls this host web-1.example.com", "calls it web-1,", "[DEFAULT] host"],
        ),
        # Hosts of other domains have the same first label.
        ([Agent(OVS_AGENT, "kernel.example.org", True)], "", WARNING, ["no agent on web-1"]),
        # nova-compute has a name of its own, the agent the kernel's.
        ([Agent(OVS_AGENT, "kernel", True)], "", FAILURE, ["calls this host kernel"]),
        ([], "Neutron can't be asked: away", WARNING, ["asked: away"]),
    ],
)
def test_the_agent_of_neutron(
    agents: list[Agent], error: str, code: Code, parts: list[str]
) -> None:
    assert says(checks.check_agent(agents, error, "web-1", "kernel.example.com"), code, *parts)


class FakeNeutron:
    """The adapter of keystoneauth, with Neutron's answer."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.session = SimpleNamespace(timeout=None)

    def get(self, path: str, raise_exc: bool) -> Any:
        assert (path, raise_exc) == ("/v2.0/agents", True)
        assert self.session.timeout
        return SimpleNamespace(json=lambda: json.loads(self.body))


def test_the_agents_that_bind_ports_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [
        {"agent_type": kind, "host": "web-1", "alive": True}
        for kind in ("DHCP agent", OVS_AGENT, "OVN Controller agent")
    ]
    body = json.dumps({"agents": listed}).encode()
    monkeypatch.setattr(probes.utils, "get_ksa_adapter", lambda _: FakeNeutron(body))
    found, error = probes.read_agents()
    assert error == ""
    assert [agent.kind for agent in found] == [OVS_AGENT, "OVN Controller agent"]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"agents": [{}]}'])
def test_a_malformed_answer_of_neutron_is_told(
    monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr(probes.utils, "get_ksa_adapter", lambda _: FakeNeutron(body))
    assert probes.read_agents()[1].startswith("Neutron sent a malformed answer: ")


def test_a_neutron_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> Any:
        raise keystone_exceptions.ConnectFailure("away")

    monkeypatch.setattr(probes.utils, "get_ksa_adapter", fail)
    assert probes.read_agents() == ([], "Neutron can't be asked: away")


def test_what_only_the_engine_knows_is_unknown_without_it() -> None:
    for result in (
        checks.check_runtime(None, "ours", True),
        checks.check_live_restore(None),
        checks.check_storage(None, False),
        checks.check_cgroups(None),
        checks.check_seccomp(None),
    ):
        assert says(result, WARNING, "the engine does not answer")


def test_switch() -> None:
    assert says(checks.check_switch("tcp:127.0.0.1:6640", ""), SUCCESS, "tcp:127.0.0.1:6640")
    away = checks.check_switch("unix:/x", "Open vSwitch cannot be asked at unix:/x: Refused")
    assert says(away, FAILURE, "asked at unix:/x: Refused: start Open vSwitch", "set-manager")


def test_resize() -> None:
    assert says(checks.check_resize(True), SUCCESS, "nova-api")
    assert says(checks.check_resize(False), WARNING, "nova-api")


SUDO = ("sudo", "/opt/bin/privsep-helper", "--config-file", "/etc/nova/nova.conf")


@pytest.mark.parametrize(
    ("root", "command", "error", "code", "parts"),
    [
        (False, SUDO, "", SUCCESS, ["user nova"]),
        (True, SUDO, "", WARNING, ["as the user of nova-compute"]),
        (
            False,
            SUDO,
            "sudo: a password is required",
            FAILURE,
            [
                "password",
                r"nova ALL = (root) NOPASSWD: /opt/bin/privsep-helper ^--config-file "
                r"/etc/nova/nova\.conf --privsep_context (a\.b|c) "
                r"--privsep_sock_path /tmp/[A-Za-z0-9_]+/privsep\.sock$",
                "in context c",
            ],
        ),
        (
            False,
            (*SUDO, "--config-file", "/etc/nova, too.conf"),
            "sudo: a password is required",
            FAILURE,
            ["adapt etc/sudoers.d/novadocker"],
        ),
        (
            False,
            SUDO,
            "sudo: privsep-helper: command not found",
            FAILURE,
            ['Defaults:nova secure_path="/opt/bin:'],
        ),
        (
            False,
            ("sudo", "/usr/bin/nova-rootwrap", "/etc/nova/rootwrap.conf", "privsep-helper"),
            "Unauthorized command",
            FAILURE,
            ["Unauthorized command", "exec_dirs"],
        ),
    ],
)
def test_privileges(
    root: bool, command: tuple[str, ...], error: str, code: Code, parts: list[str]
) -> None:
    call = checks.PrivilegedCall(
        "nova", root, command, error, context="c" if error else "", contexts=("a.b", "c")
    )
    assert says(checks.check_privileges(call, "etc"), code, *parts)


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (
            SUDO,
            r"nova ALL = (root) NOPASSWD: /opt/bin/privsep-helper ^--config-file "
            r"/etc/nova/nova\.conf --privsep_context (os_brick\.privileged\.default) "
            r"--privsep_sock_path /tmp/[A-Za-z0-9_]+/privsep\.sock$; this makes the user root",
        ),
        ((*SUDO, "--config-file", "/etc/nova, too.conf"), "adapt and install etc/sudoers.d/"),
        (("sudo", "/usr/bin/nova-rootwrap", "/etc/nova/rootwrap.conf"), "exec_dirs"),
    ],
)
def test_a_host_without_volumes(command: tuple[str, ...], part: str) -> None:
    call = checks.PrivilegedCall(
        "nova", False, command, "", volumes_error="no", volumes_context=test_etc.VOLUMES
    )
    found = checks.check_privileges(call, "etc")
    assert says(found, WARNING, "volumes cannot be attached (no)", part)


# -- the facts ---------------------------------------------------------------------------------


def test_the_driver_is_imported_by_novas_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, _loader.ALIAS, raising=False)
    _loader.install()
    found = probes.import_driver()
    assert found.origin == _loader.__file__
    assert found.hooked
    assert not found.error


def test_an_import_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, _loader.ALIAS, raising=False)
    monkeypatch.setattr(
        sys, "meta_path", [f for f in sys.meta_path if type(f).__name__ != "AliasFinder"]
    )
    found = probes.import_driver()
    assert found.origin is None
    assert not found.hooked
    assert _loader.ALIAS in found.error


def test_an_engine_that_is_away_is_told(tmp_path: Path) -> None:
    configuration = fresh_configuration()
    configuration.set_override("api_url", f"unix://{tmp_path}/docker.sock", "docker")
    info, error = probes.read_engine(configuration.docker)
    assert info is None
    assert f"{tmp_path}/docker.sock" in error
    assert "does not answer" in error


@pytest.mark.parametrize(
    ("answer", "expected"), [({"error": None, "result": []}, ""), ({"error": "no"}, "refuses echo")]
)
def test_the_switch_by_both_kinds_of_address(
    tmp_path: Path, answer: dict[str, object], expected: str
) -> None:
    for family, address, name in (
        (socket.AF_UNIX, f"{tmp_path}/db.sock", "unix:{}"),
        (socket.AF_INET, ("127.0.0.1", 0), "tcp:{0[0]}:{0[1]}"),
    ):
        with socket.socket(family) as server:
            server.bind(address)
            server.listen()
            url = name.format(server.getsockname())
            with futures.ThreadPoolExecutor(1) as executor:
                executor.submit(answer_one, server, {"id": 0, **answer})
                found = probes.ask_switch(url)
        assert expected in found
        assert bool(found) == bool(expected)
        assert probes.ask_switch(url).endswith("Connection refused")


def answer_one(server: socket.socket, answer: object) -> None:
    """Answer the first request of one client of Open vSwitch's database."""
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(json.dumps(answer).encode())


def privileged_call(monkeypatch: pytest.MonkeyPatch, helper: str) -> checks.PrivilegedCall:
    with monkeypatch.context() as patched:
        # A helper command's first word is executed unchanged.
        patched.setattr(probes.utils, "get_root_helper", lambda: helper)
        return probes.call_privileged(conf.CONF)


def test_a_refused_privileged_call_tells_the_helpers_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusing = tmp_path / "sudo"
    refusing.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    refusing.chmod(0o755)
    found = privileged_call(monkeypatch, str(refusing))
    assert found.error == "sudo: a password is required"
    assert Path(found.command[1]).name == "privsep-helper"
    assert "--privsep_context" not in found.command
    assert found.context == "novadocker.privsep.network_pctxt"
    assert found.contexts == test_etc.CONTEXTS


def test_a_helper_that_hangs_ends_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = tmp_path / "pid"
    os.mkfifo(started)
    script = f"sleep 60 & echo $! >{started}; wait"
    monkeypatch.setattr(
        probes, "_PRIVILEGED_CALL", f"import os; os.execlp('sh', 'sh', '-c', {script!r})"
    )
    monkeypatch.setattr(probes, "_PRIVILEGED_SECONDS", 2)
    with futures.ThreadPoolExecutor() as executor:
        pid = executor.submit(started.read_text)
        call = executor.submit(probes.call_privileged, conf.CONF)
        process = os.pidfd_open(int(pid.result()))
        assert call.result().error == "the privileged processes did not answer within 2 s"
    try:
        ended, _, _ = select.select([process], [], [], 10)
        assert ended
    finally:
        os.close(process)


def test_the_privileged_call_is_an_entry_point() -> None:
    assert probes.privsep.network_pctxt.is_entrypoint(privileged.read_capabilities)


CALL = checks.PrivilegedCall("nova", False, ("sudo",), "")


@pytest.mark.parametrize(
    ("datapaths", "call", "code", "part"),
    [
        ({"br-int": ""}, CALL, SUCCESS, "both directions"),
        ({"br-int": "system", "br-ex": "netdev"}, CALL, SUCCESS, "both directions"),
        ({"br-int": "netdev"}, CALL, WARNING, "br-int has a userspace datapath"),
        ({"br-int": ""}, replace(CALL, missing_means=["police"]), WARNING, "send is not limited"),
        ({"br-int": ""}, replace(CALL, missing_means=["htb"]), WARNING, "receive is not limited"),
        (None, CALL, WARNING, "unknown"),
        ({"br-int": ""}, replace(CALL, error="no sudo"), WARNING, "unknown"),
        ({"br-int": ""}, None, WARNING, "unknown"),
    ],
)
def test_bandwidth_limits(datapaths: Any, call: Any, code: Code, part: str) -> None:
    assert says(checks.check_bandwidth(datapaths, "br-int", call), code, part)


# -- the command -------------------------------------------------------------------------------


def fresh_configuration() -> cfg.ConfigOpts:
    """Return the command's subset of Nova's options, not parsed yet."""
    found = cfg.ConfigOpts()
    configdrive.register_opts(found)
    compute.register_opts(found)
    netconf.register_opts(found)
    found.register_opts(neutron.neutron_opts, group="neutron")
    docker_conf.register_opts(found)
    found.register_opts(OvsPlugin.CONFIG_OPTS, group="os_vif_ovs")
    return found


@pytest.mark.parametrize(
    ("mode", "reason", "code", "part"),
    [
        ("ram", "", SUCCESS, "CRIU can write"),
        ("disk", "", SUCCESS, "CRIU can write"),
        ("ram", "no criu", SUCCESS, "stays in RAM: no criu"),
        ("disk", "no criu", WARNING, "stays in RAM: no criu"),
        ("disk", None, WARNING, ""),
    ],
)
def test_suspend(mode: str, reason: str | None, code: Code, part: str) -> None:
    assert says(checks.check_suspend(mode, reason), code, part)


@pytest.mark.parametrize(
    ("mode", "trial", "code", "part"),
    [
        ("host", Trial(), SUCCESS, "may have, by docker:userns=own"),
        ("own", Trial(), SUCCESS, "servers have user namespaces of their own"),
        ("host", Trial("old kernel"), SUCCESS, "old kernel"),
        ("own", Trial("old kernel"), WARNING, "servers have the host's ids: old kernel"),
        ("required", Trial("old kernel"), FAILURE, "nova-compute does not start"),
        ("host", Trial(failure="no room"), WARNING, "until it succeeds: no room"),
        ("own", Trial(failure="no room"), WARNING, "until it succeeds: no room"),
        ("required", Trial(failure="no room"), FAILURE, "does not start, because [docker] user"),
        ("own", None, WARNING, ""),
    ],
)
def test_user_namespaces(mode: str, trial: Trial | None, code: Code, part: str) -> None:
    assert says(checks.check_user_namespaces(mode, "2147483648:65536", trial), code, part)


@pytest.mark.parametrize("trial", [Trial(), Trial("old kernel"), None])
def test_wrong_ids_of_user_namespaces_fail(trial: Trial | None) -> None:
    """nova-compute parses the ids with each mode."""
    found = checks.check_user_namespaces("host", "2147483648:7", trial)
    assert says(found, FAILURE, "nova-compute does not start", "user_namespace_ids", ":7'")


def test_the_command_reads_the_ids_of_user_namespaces(run: Callable[..., Any]) -> None:
    code, rows = run(fakes.INFO, options="[docker]\nuser_namespace_ids = all\n")
    assert code == 2
    assert "user_namespace_ids = 'all'" in rows["User namespaces"]["details"]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, dict[str, Any]]]]:
    """Run the command on faked probes; return its exit status and the rows by name."""

    def command(
        info: EngineInfo | None, error: str = "", options: str = ""
    ) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(status, "CONF", fresh_configuration())
        call = checks.PrivilegedCall("nova", False, ("sudo", "privsep-helper"), "")
        monkeypatch.setattr(probes, "import_driver", imported)
        monkeypatch.setattr(probes, "read_engine", lambda *_: (info, error))
        monkeypatch.setattr(
            probes, "ask_shim", lambda path: "" if path.startswith("/usr/bin/") else "x"
        )
        monkeypatch.setattr(probes, "ask_switch", lambda _: "")
        monkeypatch.setattr(probes, "call_privileged", lambda _: call)
        monkeypatch.setattr(probes, "read_chassis", lambda _: Chassis("", ""))
        monkeypatch.setattr(probes, "read_datapaths", lambda _: {"br-int": ""})
        monkeypatch.setattr(probes, "read_budgets", lambda: checks.BUDGETS)
        monkeypatch.setattr(probes, "find_processes", list)
        monkeypatch.setattr(probes, "read_node", lambda _: checks.Node("host1", "host1"))
        agents = [Agent(OVS_AGENT, status.CONF.host, True)]
        monkeypatch.setattr(probes, "read_agents", lambda: (agents, ""))
        monkeypatch.setattr(probes, "read_kernel", lambda: KERNEL)
        monkeypatch.setattr(probes, "try_user_namespaces", lambda _: Trial())
        monkeypatch.setattr(probes, "why_no_criu", lambda _: "there is no program criu")
        monkeypatch.setattr(probes, "missing_programs", lambda _: [])
        monkeypatch.setattr(lxcfs, "read_view", lambda _: View(7))
        file = tmp_path / "nova.conf"
        file.write_text(
            "[DEFAULT]\ncompute_driver = docker.DockerDriver\nallow_resize_to_same_host = true\n"
            + options
        )
        code = status.main(["--config-file", str(file), "upgrade", "check", "--json"])
        rows = json.loads(capsys.readouterr().out)["checks"]
        return code, {row["check"]: row for row in rows}

    return command


def test_all_is_well(run: Callable[..., Any]) -> None:
    code, rows = run(replace(fakes.INFO, storage_driver="btrfs"))
    assert code == 0
    assert len(rows) == 22
    assert all(row["result"] == SUCCESS for row in rows.values())


def test_the_worst_check_is_the_exit_code(run: Callable[..., Any]) -> None:
    code, rows = run(replace(fakes.INFO, live_restore=False))
    assert code == 1
    assert rows["Live restore"]["result"] == WARNING


def test_an_engine_without_seccomp_fails_the_command(run: Callable[..., Any]) -> None:
    code, rows = run(replace(fakes.INFO, seccomp=False))
    assert code == 2
    assert rows["Seccomp"]["result"] == FAILURE


def test_the_file_of_the_runtime_is_looked_at(run: Callable[..., Any]) -> None:
    code, rows = run(replace(fakes.INFO, runtimes={"novadocker": "/nowhere/shim"}))
    assert code == 2
    assert "/nowhere/shim" in rows["Runtime shim"]["details"]


def test_without_the_engine_the_others_are_checked_all_the_same(run: Callable[..., Any]) -> None:
    code, rows = run(None, "away")
    assert code == 2
    assert rows["Docker Engine"]["result"] == FAILURE
    assert rows["Runtime shim"]["result"] == WARNING
    assert rows["Open vSwitch"]["result"] == SUCCESS


def test_a_file_that_is_not_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(status, "CONF", fresh_configuration())
    assert status.main(["--config-file", "/no/such/file", "upgrade", "check"]) == 255
    assert "/no/such/file" in capsys.readouterr().err


def test_too_old_an_engine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        @classmethod
        def from_options(cls, *_: object) -> "Old":
            return cls()

        def info(self) -> EngineInfo:
            raise exception.InvalidConfiguration(reason="it speaks API 1.40")

    monkeypatch.setattr(probes, "Engine", Old)
    info, error = probes.read_engine(fresh_configuration().docker)
    assert info is None
    assert "it speaks API 1.40" in error


@pytest.mark.parametrize(
    ("folder", "view", "code", "part"),
    [
        ("", View(), SUCCESS, "turned off"),
        ("/l", View(), WARNING, "not mounted at /l"),
        ("/l", View(error="not connected"), FAILURE, "not connected"),
        ("/l", View(7, ("proc/stat",), ("lxcfs", "--enable-cfs", "/l")), SUCCESS, "/l"),
        ("/l", View(7, ("proc/stat",)), SUCCESS, "/l"),
        ("/l", View(7, arguments=("lxcfs", "-l", "/l")), WARNING, "without --enable-cfs"),
    ],
)
def test_lxcfs(folder: str, view: View, code: Code, part: str) -> None:
    assert says(checks.check_lxcfs(folder, view, "etc"), code, part)


@pytest.mark.parametrize(
    ("record", "folder"),
    [("../../../etc/novadocker/sudoers.d/novadocker", "etc/novadocker"), (None, "doc")],
)
def test_samples_are_named_as_they_are_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record: str | None, folder: str
) -> None:
    """pip's packages have a list of their files, Debian's do not."""
    package = tmp_path / "lib/python3/site-packages/novadocker-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: novadocker\nVersion: 1.0\n")
    if record:
        (package / "RECORD").write_text(f"novadocker/__init__.py,,\n{record},,\n")
    sample = tmp_path / folder / "sudoers.d/novadocker"
    sample.parent.mkdir(parents=True)
    sample.touch()
    monkeypatch.setattr(probes, "_DEBIAN_SAMPLES", str(tmp_path / "doc"))
    found = metadata.PathDistribution(package)
    monkeypatch.setattr(metadata, "distribution", lambda _: found)
    assert probes.find_samples() == str(tmp_path / folder)


def test_without_an_installation_the_checkout_has_the_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", fail)
    assert probes.find_samples() == "etc"


def test_kernel_budgets(tmp_path: Path) -> None:
    kept = {**dict.fromkeys(checks.BUDGETS, 1 << 30), "fs.pipe-user-pages-soft": 0}
    assert says(checks.check_budgets(kept, "etc"), SUCCESS, "no server can use up inotify")
    assert says(checks.check_budgets({**kept, "fs.aio-max-nr": None}, "etc"), SUCCESS)
    default = {**kept, "fs.inotify.max_user_instances": 128, "kernel.keys.maxkeys": 200}
    parts = ("max_user_instances is 128, kernel.keys.maxkeys is 200", "etc/sysctl.d/novadocker")
    assert says(checks.check_budgets(default, "etc"), WARNING, *parts)
    (tmp_path / "fs/inotify").mkdir(parents=True)
    (tmp_path / "fs/inotify/max_user_instances").write_text("128\n")
    found = probes.read_budgets(tmp_path)
    assert found == {**dict.fromkeys(checks.BUDGETS), "fs.inotify.max_user_instances": 128}
