# SPDX-License-Identifier: Apache-2.0
"""OVN in place of Neutron's agents: its databases, northd, and a controller on each host."""

from collections.abc import Iterable
from pathlib import Path

from devcloud.program import Program
from devcloud.settings import API_ADDRESS, Host, Settings
from devcloud.steps import run_command

SCHEMAS = Path("/usr/share/ovn")

PORTS = {"nb": 6641, "sb": 6642}
"""The TCP ports of the northbound and the southbound database."""


def connection(name: str) -> str:
    """Return the address of a database, ``nb`` or ``sb``."""
    return f"tcp:{API_ADDRESS}:{PORTS[name]}"


def folder(settings: Settings) -> Path:
    """Return the directory of both databases."""
    return settings.data / "ovn"


def make_databases(settings: Settings) -> None:
    """Create the missing databases. Neutron fills the northbound database again if it is empty."""
    folder(settings).mkdir(parents=True, exist_ok=True)
    (settings.run / "ovn").mkdir(parents=True, exist_ok=True)
    for name in PORTS:
        path = folder(settings) / f"{name}.db"
        if not path.exists():
            run_command(
                ["ovsdb-tool", "create", path, SCHEMAS / f"ovn-{name}.ovsschema"],
                log=settings.log / f"ovn-{name}-create.log",
                advice="apt-get install --reinstall ovn-central",
            )


def central(settings: Settings) -> Iterable[Program]:
    """Return the databases and northd, which run on the first host only."""
    run = settings.run / "ovn"
    environment = (("OVN_RUNDIR", str(run)), ("OVS_RUNDIR", str(run)))
    for name, port in PORTS.items():
        yield Program(
            f"ovn-{name}",
            (
                "/usr/sbin/ovsdb-server",
                str(folder(settings) / f"{name}.db"),
                f"--remote=punix:{run}/{name}.sock",
                f"--remote=ptcp:{port}:{API_ADDRESS}",
                f"--unixctl={run}/{name}.ctl",
                "-vsyslog:off",
            ),
            environment=environment,
            stage="infrastructure",
        )
    yield Program(
        "ovn-northd",
        (
            "/usr/bin/ovn-northd",
            f"--ovnnb-db=unix:{run}/nb.sock",
            f"--ovnsb-db=unix:{run}/sb.sock",
            f"--unixctl={run}/northd.ctl",
            "-vsyslog:off",
        ),
        environment=environment,
        stage="switch",
    )


def controller(settings: Settings, host: Host) -> Program:
    """Return one host's ovn-controller, which creates br-int."""
    run = settings.host_run(host) / "ovs"
    return Program(
        f"ovn-controller-{host.name}",
        # The exporter finds the control socket by the pid file, as on Debian.
        ("/usr/bin/ovn-controller", f"unix:{run}/db.sock", "--pidfile", "-vsyslog:off"),
        environment=(("OVN_RUNDIR", str(run)), ("OVS_RUNDIR", str(run))),
        stage="switch",
    )


def chassis(host: Host) -> dict[str, str]:
    """Return the ``external_ids`` of a host's switch that ovn-controller reads."""
    values = {
        "ovn-remote": connection("sb"),
        "ovn-encap-type": "geneve",
        "ovn-encap-ip": host.tunnel_address,
        "ovn-bridge-datapath-type": "netdev",
        "ovn-bridge-mappings": "public:br-ex,physvlan:br-vlan",
    }
    if host.network_node:
        values["ovn-cms-options"] = "enable-chassis-as-gw"
    return values
