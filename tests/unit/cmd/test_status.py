# SPDX-License-Identifier: Apache-2.0
import json
import os
import select
import socket
import sys
from collections.abc import Callable
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nova import conf
from nova.conf import compute, netconf, neutron
from oslo_config import cfg
from oslo_upgradecheck.upgradecheck import Code, Result
from vif_plug_ovs.ovs import OvsPlugin

from novadocker import _loader, exception
from novadocker import conf as docker_conf
from novadocker.cmd import checks, privileged, probes, status
from novadocker.cmd.checks import Chassis
from novadocker.virt.docker.guest import lxcfs
from novadocker.virt.docker.guest.lxcfs import View
from novadocker.virt.docker.model import EngineInfo
from tests import CHECKOUT
from tests.unit import fakes, test_etc

SUCCESS, WARNING, FAILURE = Code.SUCCESS, Code.WARNING, Code.FAILURE


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
    assert rows["Configuration"]["details"].endswith(f"in {tmp_path}/nova.conf")


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
    assert says(checks.check_seccomp(without), FAILURE, "only servers with docker:nesting")


def test_containerds_image_store() -> None:
    info = replace(fakes.INFO, containerd_store=True)
    assert says(checks.check_storage(info, True), FAILURE, '"containerd-snapshotter": false')


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
    assert says(checks.check_privileges(call), code, *parts)


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
    compute.register_opts(found)
    netconf.register_opts(found)
    found.register_opts(neutron.neutron_opts, group="neutron")
    docker_conf.register_opts(found)
    found.register_opts(OvsPlugin.CONFIG_OPTS, group="os_vif_ovs")
    return found


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, dict[str, Any]]]]:
    """Run the command on faked probes; return its exit status and the rows by name."""

    def command(info: EngineInfo | None, error: str = "") -> tuple[int, dict[str, Any]]:
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
        monkeypatch.setattr(lxcfs, "read_view", lambda _: View(7))
        file = tmp_path / "nova.conf"
        file.write_text(
            "[DEFAULT]\ncompute_driver = docker.DockerDriver\nallow_resize_to_same_host = true\n"
        )
        code = status.main(["--config-file", str(file), "upgrade", "check", "--json"])
        rows = json.loads(capsys.readouterr().out)["checks"]
        return code, {row["check"]: row for row in rows}

    return command


def test_all_is_well(run: Callable[..., Any]) -> None:
    code, rows = run(replace(fakes.INFO, storage_driver="btrfs"))
    assert code == 0
    assert len(rows) == 15
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
    assert says(checks.check_lxcfs(folder, view), code, part)


def test_kernel_budgets(tmp_path: Path) -> None:
    kept = {**dict.fromkeys(checks.BUDGETS, 1 << 30), "fs.pipe-user-pages-soft": 0}
    assert says(checks.check_budgets(kept), SUCCESS, "no server can use up inotify")
    assert says(checks.check_budgets({**kept, "fs.aio-max-nr": None}), SUCCESS)
    default = {**kept, "fs.inotify.max_user_instances": 128, "kernel.keys.maxkeys": 200}
    parts = ("max_user_instances is 128, kernel.keys.maxkeys is 200", "etc/sysctl.d/novadocker")
    assert says(checks.check_budgets(default), WARNING, *parts)
    (tmp_path / "fs/inotify").mkdir(parents=True)
    (tmp_path / "fs/inotify/max_user_instances").write_text("128\n")
    found = probes.read_budgets(tmp_path)
    assert found == {**dict.fromkeys(checks.BUDGETS), "fs.inotify.max_user_instances": 128}
