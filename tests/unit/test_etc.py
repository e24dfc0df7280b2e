# SPDX-License-Identifier: Apache-2.0
"""The sample files match the code."""

import configparser
import json
import re
from pathlib import Path

import pytest
from oslo_config import generator

from novadocker import privsep
from novadocker.cmd import checks
from novadocker.engine_proxy import serving
from novadocker.virt.docker.guest import console
from tests import CHECKOUT

ETC = CHECKOUT / "etc"

CONTEXTS = (
    "novadocker.privsep.network_pctxt",
    "novadocker.privsep.interior_pctxt",
    "novadocker.privsep.storage_pctxt",
    "novadocker.privsep.view_pctxt",
    "novadocker.privsep.transfer_pctxt",
    "novadocker.privsep.volume_pctxt",
    "vif_plug_ovs.privsep.vif_plug",
)
VOLUMES = "os_brick.privileged.default"


def helper_arguments(context: str, more: str = "") -> str:
    """Return oslo.privsep's arguments for nova-compute, in the form that sudo matches."""
    return (
        f"--config-file /etc/nova/nova.conf --privsep_context {context} "
        f"--privsep_sock_path /tmp/tmp4z_x1/privsep.sock{more}"
    )


def test_the_sample_of_the_options_is_current(tmp_path: Path) -> None:
    """``oslo-config-generator`` writes the sample, see the contributor's guide."""
    generated = tmp_path / "sample"
    settings = str(ETC / "oslo-config-generator/nova-docker.conf")
    generator.main(["--config-file", settings, "--output-file", str(generated)])
    assert (ETC / "nova/nova-docker.conf.sample").read_text() == generated.read_text()


def test_the_engines_sample_has_what_the_driver_asks_for() -> None:
    sample = json.loads((ETC / "docker/daemon.json").read_text())
    assert sample["live-restore"] is True
    assert Path(sample["runtimes"]["novadocker"]["path"]).name == "novadocker-runtime"
    # The engine creates no network on the host.
    assert (sample["bridge"], sample["iptables"], sample["ip6tables"]) == ("none", False, False)


def test_the_contexts_are_those_in_the_samples() -> None:
    ours = (
        privsep.network_pctxt,
        privsep.interior_pctxt,
        privsep.storage_pctxt,
        privsep.view_pctxt,
        privsep.transfer_pctxt,
        privsep.volume_pctxt,
    )
    assert tuple(context.pypath for context in ours) == CONTEXTS[:6]


@pytest.mark.parametrize(
    ("file", "arguments", "allowed"),
    [
        *(("novadocker", helper_arguments(context), True) for context in CONTEXTS),
        # os-brick's helper runs any command.
        ("novadocker", helper_arguments(VOLUMES), False),
        ("novadocker", helper_arguments("os.system"), False),
        ("novadocker", helper_arguments("novadocker_privsep.network_pctxt"), False),
        ("novadocker", helper_arguments(CONTEXTS[0], " --config-file /tmp/own"), False),
        ("novadocker-volumes", helper_arguments(VOLUMES), True),
        ("novadocker-volumes", helper_arguments(CONTEXTS[0]), False),
        ("novadocker-volumes", helper_arguments(VOLUMES, " --config-file /tmp/own"), False),
    ],
)
def test_sudo_lets_the_helpers_through(file: str, arguments: str, allowed: bool) -> None:
    (rule,) = re.findall(
        r"NOPASSWD: /usr/bin/privsep-helper (\^.*\$)$",
        (ETC / "sudoers.d" / file).read_text(),
        re.MULTILINE,
    )
    assert bool(re.match(rule, arguments)) is allowed


def test_the_order_of_the_services() -> None:
    """A host starts Open vSwitch, lxcfs and the engine, then nova-compute."""
    compute = _unit("nova-compute.service.d/novadocker.conf")
    assert {"docker.service", "openvswitch-switch.service"} <= set(compute["After"].split())
    # systemd would stop nova-compute together with a required unit.
    assert "Requires" not in compute
    lxcfs = _unit("lxcfs.service.d/novadocker.conf")
    assert lxcfs["Before"].split() == ["docker.service", "nova-compute.service"]


def test_the_socket_of_the_engine_s_proxy() -> None:
    socket = _unit("novadocker-engine-proxy.socket", "Socket")
    assert f"unix://{socket['ListenStream']}" == checks.PROXY_URL
    assert socket["SocketMode"] == "0660"
    service = _unit("novadocker-engine-proxy.service", "Service")
    assert Path(service["ExecStart"]).name in (CHECKOUT / "setup.cfg").read_text()
    assert (service["DynamicUser"], service["CapabilityBoundingSet"]) == ("yes", "")
    assert int(service["TasksMax"]) > serving._MOST_CLIENTS + 50
    assert int(service["LimitNOFILE"]) > 2 * serving._MOST_CLIENTS + 50
    # A console has a terminal and a thread's session.
    assert serving._MOST_CLIENTS >= 2 * 2 * console._MOST_CONNECTIONS


def _unit(name: str, section: str = "Unit") -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ETC / "systemd" / name)
    return parser[section]


def test_image_properties_are_offered() -> None:
    found = json.loads((ETC / "glance/metadefs/novadocker-image.json").read_text())["properties"]
    code = "".join(path.read_text() for path in (ETC.parent / "novadocker/virt").rglob("*.py"))
    assert {name: name in code for name in found} == {
        "docker_image": True,
        "os_command_line": True,
        "os_admin_user": True,
        "os_console": True,
        "img_config_drive_device": True,
    }
    assert found["os_console"]["enum"] == ["login", "shell", "process"]


def test_sysctls_are_those_that_the_status_check_wants() -> None:
    lines = (ETC / "sysctl.d/novadocker.conf").read_text().splitlines()
    pairs = (line.split(" = ") for line in lines if line and not line.startswith("#"))
    assert {name: int(value) for name, value in pairs} == checks.BUDGETS
