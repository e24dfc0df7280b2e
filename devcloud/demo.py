# SPDX-License-Identifier: Apache-2.0
"""``make demo``: boot a server, then show it as the tenant sees it and as the kernel does."""

import http.client
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from openstack.compute.v2.server import Server
from openstack.connection import Connection
from openstack.exceptions import SDKException

from devcloud import up
from devcloud.clients import connect
from devcloud.network import NAMESPACES, inside
from devcloud.seed import key_file
from devcloud.settings import Host, Settings
from devcloud.steps import StepFailed, say, step, wait_until
from devcloud.switch import vsctl
from devcloud.unix_http import UnixConnection

NAME = "demo"

BOOT_SECONDS = 180

# The first file of each pair exists on cgroup v1, the second on cgroup v2.
LIMIT_FILES = (
    ("memory", "memory.limit_in_bytes"),
    ("", "memory.max"),
    ("cpu", "cpu.cfs_quota_us"),
    ("cpu", "cpu.shares"),
    ("", "cpu.max"),
    ("", "cpu.weight"),
    ("pids", "pids.max"),
    ("", "pids.max"),
)


def boot(settings: Settings, demo: Connection) -> Server:
    """Boot the server, in place of an earlier demo's.

    :raises StepFailed: the server did not become ACTIVE.
    """
    for old in demo.compute.servers(name=f"^{NAME}$"):
        demo.delete_server(old.id, wait=True, timeout=BOOT_SECONDS)
    try:
        return demo.create_server(
            NAME,
            image="debian",
            flavor="d1.small",
            network="private",
            key_name="demo",
            auto_ip=False,
            wait=True,
            timeout=BOOT_SECONDS,
        )
    except SDKException as error:
        host = settings.hosts[0]
        raise StepFailed(
            f"The server {NAME} did not become ACTIVE: {error}",
            "openstack server show demo shows the cause; fix it and run make demo again",
            settings.log / f"nova-compute-{host.name}.log",
        ) from error


def fixed_address(server: Server, network: str = "private") -> str:
    """Return a server's first IPv4 address on a network."""
    found = [entry["addr"] for entry in server.addresses[network] if entry["version"] == 4]
    return str(found[0])


def ssh(settings: Settings, address: str) -> list[str]:
    """Return the command that logs in to the server; it works wherever the address is reachable."""
    options = {
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
        "ConnectTimeout": "5",
        "BatchMode": "yes",
    }
    listed = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return ["ssh", "-i", str(key_file(settings)), *listed, f"debian@{address}"]


def show(
    title: str, command: Sequence[str | Path], environment: dict[str, str] | None = None
) -> None:
    """Print a command's output below a title.

    :raises StepFailed: the command failed.
    """
    print(f"\n$ {title}", flush=True)
    done = subprocess.run(command, env=environment, timeout=120, check=False)
    if done.returncode != 0:
        raise StepFailed(f"{title}: exit status {done.returncode}", "see its output above")


def client_environment(settings: Settings) -> dict[str, str]:
    """Return the environment that makes ``openstack`` log in as the tenant ``demo``."""
    return {
        "PATH": f"{settings.bin}:/usr/bin:/bin",
        "HOME": str(settings.run),
        "OS_CLIENT_CONFIG_FILE": str(settings.folder / "clouds.yaml"),
        "OS_CLOUD": "devcloud-demo",
        "no_proxy": os.environ.get("no_proxy", ""),
    }


def ask_engine(settings: Settings, host: Host, path: str) -> Any:
    """Return the JSON document of an engine's response.

    :raises StepFailed: the engine did not respond with 200, for example because the object does not
        exist.
    """
    connection = UnixConnection(settings.engine_socket(host))
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    if response.status != http.client.OK:
        raise StepFailed(
            f"The engine on {host.name} answered {response.status} to {path}",
            f"python3 -m devcloud ctl tail docker-{host.name}",
        )
    return json.loads(body)


def cgroup_lines(process: int) -> Iterator[str]:
    """Yield the limits of a process's control groups, as the kernel reports them."""
    for entry in Path(f"/proc/{process}/cgroup").read_text().splitlines():
        _, controllers, path = entry.split(":", 2)
        for controller, name in LIMIT_FILES:
            if controller in controllers.split(","):
                file = Path("/sys/fs/cgroup") / controller / path.lstrip("/") / name
                if file.exists():
                    yield f"{file}: {file.read_text().strip()}"


def show_kernel_side(settings: Settings, admin: Connection, server: Server) -> None:
    """Print the server's control groups and switch port on the host where it runs."""
    name = admin.compute.get_server(server.id).hypervisor_hostname
    host = next((host for host in settings.hosts if host.name == name), settings.hosts[0])
    container = ask_engine(settings, host, f"/containers/nova-{server.id}/json")
    process = container["State"]["Pid"]
    print(f"\nthe container nova-{server.id} on {host.name}, process {process}, limits:")
    for line in cgroup_lines(process):
        print(f"  {line}")
    for port in admin.network.ports(device_id=server.id):
        print(f"\nthe switch port of the Neutron port {port.id}:")
        columns = "--columns=name,ofport,external_ids,error"
        found = vsctl(
            settings, host, columns, "find", "interface", f"external_ids:iface-id={port.id}"
        )
        for line in found.splitlines():
            print(f"  {line}")


def demo(settings: Settings) -> None:
    """Start the cloud, boot a server and show it.

    :raises StepFailed: a step failed.
    """
    up.up(settings)
    tenant, admin = connect(settings, "demo"), connect(settings, "admin")
    with step(f"server {NAME} is ACTIVE"):
        server = boot(settings, tenant)
    address = fixed_address(server)
    network = admin.network.find_network("private")
    namespace = settings.tenant_namespace(network.id)
    login = inside(namespace, ssh(settings, address))

    def logs_in() -> bool:
        done = subprocess.run([*login, "true"], check=False, capture_output=True, timeout=30)
        return done.returncode == 0

    with step("the server accepts the tenant's key"):
        wait_until(
            logs_in,
            what=f"SSH to {address}",
            advice="openstack console log show demo",
            log=settings.log / f"neutron-metadata-{settings.hosts[0].name}.log",
            timeout=90,
            interval=1,
        )
    show(f"ping {address}", inside(namespace, ["ping", "-n", "-c", "3", "-W", "5", address]))
    question = "hostname; id -un; uname -sr; ip -o address show eth0; ip route"
    show(f"ssh debian@{address} '{question}'", [*login, question])
    environment = client_environment(settings)
    for words in (["server", "list"], ["console", "log", "show", NAME]):
        show(f"openstack {' '.join(words)}", ["openstack", *words], environment)
    show_kernel_side(settings, admin, server)
    print()
    say("the demo works; to continue:")
    nsenter = f"nsenter --net={NAMESPACES / namespace}"
    print(f"""
  . {settings.folder}/demo-openrc
  openstack server list
  openstack server create --image busybox --flavor d1.tiny --network private second
  openstack server reboot {NAME}; openstack server stop {NAME}; openstack server start {NAME}
  {nsenter} ssh -i {key_file(settings)} debian@{address}
  openstack floating ip create public    # then: openstack server add floating ip {NAME} ADDRESS
  ssh -i {key_file(settings)} debian@ADDRESS
  python3 -m devcloud status             # or: ctl restart NAME, ctl tail -f NAME
  make down
""")
