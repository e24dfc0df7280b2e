# SPDX-License-Identifier: Apache-2.0
"""DevStack's plugin, whose functions run against stubs of DevStack's."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import CHECKOUT

PLUGIN = CHECKOUT / "devstack"

# DevStack runs plugins with these options of the shell (stack.sh).
STUBS = """
set -o errexit -o errtrace -o pipefail
called() { printf '%s\\n' "$*" >> "$CALLS"; }
define_plugin() { called "define_plugin $*"; }
echo_summary() { :; }
die() { echo "line $1: $2" >&2; exit 1; }
exit_distro_not_supported() { echo "not supported: $1" >&2; exit 1; }
is_ubuntu() { [[ "$DISTRIBUTION" == ubuntu ]]; }
is_service_enabled() {
    local service
    for service in "$@"; do
        [[ ",$SERVICES," == *",$service,"* ]] && return 0
    done
    return 1
}
trueorfalse() { local value=${!2:-$1}; echo "$value"; }
sudo() {
    called "sudo $*"
    case "$*" in
        "docker save"*) echo archive ;;
        "docker info"*) [[ $(grep -c "docker info" "$CALLS") -lt 3 ]] || echo "$LIVE_RESTORE" ;;
        *--remove) return "$REMOVE_STATUS" ;;
    esac
}
sleep() { :; }
sg() { called "sg $*"; return "$CHECK_STATUS"; }
for name in install_package setup_develop iniset add_user_to_group restart_service \\
    reload_service _upload_image; do
    eval "$name() { called \\"$name \\$*\\"; }"
done
"""

ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "DEST": "/opt/stack",
    "DISTRIBUTION": "ubuntu",
    "SERVICES": "n-cpu,n-api,g-api,tempest,ovn-controller",
    "VIRT_DRIVER": "docker",
    "DOCKER_GROUP": "docker",
    "STACK_USER": "stack",
    "NOVA_BIN_DIR": "/opt/stack/data/venv/bin",
    "NOVA_CONF": "/etc/nova/nova.conf",
    "NOVA_CPU_CONF": "/etc/nova/nova-cpu.conf",
    "TEMPEST_CONFIG": "/opt/stack/tempest/etc/tempest.conf",
    "Q_AGENT": "ovn",
    "CHECK_STATUS": "0",
    "REMOVE_STATUS": "0",
    "LIVE_RESTORE": "true",
}


@dataclass(frozen=True)
class Result:
    status: int
    stderr: str
    calls: list[str]


def run(folder: Path, words: str, **environment: str) -> Result:
    """Source the plugin as DevStack does, and return what it called."""
    calls, resolver = folder / "calls", folder / "resolv.conf"
    calls.write_text("")
    resolver.write_text("search x\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver ::1\n")
    script = f"{STUBS}\nsource {PLUGIN}/settings\nsource {PLUGIN}/plugin.sh {words}\n"
    done = subprocess.run(
        ["bash", "-c", script],
        env={
            **ENVIRONMENT,
            "CALLS": str(calls),
            "NOVADOCKER_RESOLV_CONF": str(resolver),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return Result(done.returncode, done.stderr, calls.read_text().splitlines()[1:])


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(
        ["shellcheck", "--shell", "bash", PLUGIN / "plugin.sh", PLUGIN / "settings"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
    assert done.returncode == 0


def test_a_run_of_stack_configures_the_host(tmp_path: Path) -> None:
    checked = run(tmp_path, "stack pre-install")
    assert (checked.status, checked.calls) == (0, [])

    installed = run(tmp_path, "stack install").calls
    assert "setup_develop /opt/stack/novadocker" in installed
    assert "install_package lxcfs" in installed

    assert run(tmp_path, "stack post-config").calls == [
        "sudo /opt/stack/data/venv/bin/novadocker-engine-config",
        "sudo install -D -m 644 /opt/stack/novadocker/etc/sysctl.d/novadocker.conf "
        "/etc/sysctl.d/novadocker.conf",
        "sudo sysctl --load /etc/sysctl.d/novadocker.conf",
        "add_user_to_group stack docker",
        # The signal of the reload takes its time.
        "reload_service docker",
        *["sudo docker info --format {{.LiveRestoreEnabled}}"] * 3,
        "restart_service docker",
        "iniset /etc/nova/nova.conf DEFAULT compute_driver docker.DockerDriver",
        "iniset /etc/nova/nova.conf DEFAULT resume_guests_state_on_host_boot True",
        "iniset /etc/nova/nova.conf docker default_name_servers 192.0.2.1",
    ]

    pulled, saved, uploaded = run(tmp_path, "stack extra").calls[1:]
    assert pulled == "sudo docker pull docker.io/library/nginx:stable-alpine"
    assert saved == "sudo docker save docker.io/library/nginx:stable-alpine"
    assert re.fullmatch(r"_upload_image nginx docker raw \S+ img_hv_type=docker", uploaded)

    tempest = run(tmp_path, "stack test-config").calls
    assert (
        "iniset /opt/stack/tempest/etc/tempest.conf compute-feature-enabled live_migration False"
    ) in tempest


def test_a_clean_run_takes_away_what_the_plugin_made(tmp_path: Path) -> None:
    assert run(tmp_path, "unstack").calls == []
    assert run(tmp_path, "clean").calls == [
        "sudo /opt/stack/data/venv/bin/novadocker-engine-config --remove",
        "sudo rm -f /etc/sysctl.d/novadocker.conf",
        "reload_service docker",
    ]


def test_an_engine_without_live_restore_is_not_restarted(tmp_path: Path) -> None:
    refused = run(tmp_path, "stack post-config", LIVE_RESTORE="false")
    assert refused.status == 1
    assert "has not taken live-restore" in refused.stderr
    assert "restart_service docker" not in refused.calls


def test_a_clean_run_ends_while_servers_need_the_shim(tmp_path: Path) -> None:
    """DevStack does not end at an error of the plugin, and then deletes the shim."""
    refused = run(tmp_path, "clean", REMOVE_STATUS="1")
    assert refused.status == 1
    assert "The shim stays" in refused.stderr
    assert len(refused.calls) == 1


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"VIRT_DRIVER": "libvirt"}, "Set VIRT_DRIVER=docker"),
        ({"SERVICES": "n-cpu,cinder"}, "The plugin sets up no volumes"),
        ({"DISTRIBUTION": "rocky"}, "not supported: novadocker's packages"),
    ],
)
def test_a_wrong_local_conf_ends_the_run_early(
    tmp_path: Path, environment: dict[str, str], reason: str
) -> None:
    refused = run(tmp_path, "stack pre-install", **environment)
    assert refused.status == 1
    assert reason in refused.stderr


@pytest.mark.parametrize(("status", "ends"), [("0", False), ("1", False), ("2", True)])
def test_a_failed_check_of_the_host_ends_the_run(tmp_path: Path, status: str, ends: bool) -> None:
    done = run(tmp_path, "stack extra", CHECK_STATUS=status)
    assert done.calls[0] == (
        "sg docker /opt/stack/data/venv/bin/novadocker-status --config-file "
        "/etc/nova/nova-cpu.conf upgrade check"
    )
    assert (done.status == 1) is ends
    assert ("This host cannot run servers" in done.stderr) is ends


def test_the_settings_are_obeyed(tmp_path: Path) -> None:
    assert len(run(tmp_path, "stack extra", NOVADOCKER_IMAGE="").calls) == 1
    plain = {"NOVADOCKER_LXCFS": "False", "Q_AGENT": "openvswitch"}
    assert "install_package lxcfs" not in run(tmp_path, "stack install", **plain).calls
    configured = run(tmp_path, "stack post-config", **plain).calls
    assert "iniset /etc/nova/nova.conf docker lxcfs_folder " in configured
    assert not any("default_name_servers" in call for call in configured)
    given = run(tmp_path, "stack post-config", NOVADOCKER_NAME_SERVERS="192.0.2.8,192.0.2.9").calls
    assert "iniset /etc/nova/nova.conf docker default_name_servers 192.0.2.8,192.0.2.9" in given


@pytest.mark.parametrize(
    ("services", "calls"),
    [("n-api", ["setup_develop /opt/stack/novadocker"]), ("n-sch,mysql", [])],
)
def test_other_hosts_get_only_the_package(tmp_path: Path, services: str, calls: list[str]) -> None:
    phases = ("pre-install", "install", "post-config", "extra", "test-config")
    found = [
        call
        for phase in phases
        for call in run(tmp_path, f"stack {phase}", SERVICES=services).calls
    ]
    assert found == calls


def test_the_sample_sets_only_what_exists() -> None:
    """A setting of the plugin in the sample is one that the plugin reads."""
    sample = (PLUGIN / "local.conf.sample").read_text()
    assert "\nVIRT_DRIVER=docker\n" in sample
    assert "\nenable_plugin novadocker " in sample
    known = (PLUGIN / "settings").read_text()
    for name in re.findall(r"^#?(NOVADOCKER_\w+)=", sample, re.MULTILINE):
        assert f"{name}=" in known


def test_the_sample_is_what_the_zuul_job_does() -> None:
    """The job's list of services without cinder is that of the sample."""
    zuul = (CHECKOUT / ".zuul.yaml").read_text()
    sample = (PLUGIN / "local.conf.sample").read_text()
    (disabled,) = re.findall(r"^disable_service (cinder .+)$", sample, re.MULTILINE)
    assert [name for name in disabled.split() if f"        {name}: false\n" not in zuul] == []
