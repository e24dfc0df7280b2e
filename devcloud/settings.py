# SPDX-License-Identifier: Apache-2.0
"""The paths and addresses of the cloud. Standard library only."""

import dataclasses
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent

NAMESPACE = "devcloud"
"""Network namespace of the controller and of the first compute host."""

MOST_HOSTS = 9

GATEWAY_ADDRESS = "172.31.255.1"
"""The machine's own end of the link into the namespace."""

API_ADDRESS = "172.31.255.2"
"""Address of all APIs, as in the catalog."""

DASHBOARD_PORT = 8080

LINK_PREFIX = 30

FLOATING_NETWORK = "172.24.4.0/24"
FLOATING_GATEWAY = "172.24.4.1"

REGION = "RegionOne"

COMPUTE_USER = "nova"
"""System user that runs nova-compute."""

PRIVILEGED_HELPER_RULE = Path("/etc/sudoers.d/novadocker-devcloud")

# A Unix socket's path has at most 107 bytes; the longest below the state directory has 43.
LONGEST_STATE_FOLDER = 64

NETWORKS = ("ovs", "ovn")
"""The kinds of network: Neutron's Open vSwitch agent and its fellows, or OVN."""

SECRET_NAMES = ("admin", "demo", "service", "database", "rabbit", "metadata")


@dataclasses.dataclass(frozen=True)
class Host:
    """One compute host: the values that differ between hosts.

    :ivar name: ``[DEFAULT] host`` of its nova-compute and its Neutron agents.
    :ivar namespace: network namespace of its processes.
    :ivar number: 1 for the first host.
    :ivar gateway: the controller's end of the link to the host; None for the first host.
    :ivar address: management address.
    :ivar tunnel_address: its address for tunnels between hosts, on the bridge br-phy.
    :ivar network_node: True if the DHCP, L3 and metadata agents run here too.
    """

    name: str
    number: int
    namespace: str
    gateway: str | None
    address: str
    tunnel_address: str
    network_node: bool


@dataclasses.dataclass(frozen=True)
class Settings:
    """The cloud's layout on disk.

    :ivar folder: state directory, ``DEVCLOUD_DIR``.
    :ivar compute_driver: ``[DEFAULT] compute_driver`` of the compute hosts.
    :ivar hosts: compute hosts; the first one is the network node.
    :ivar dashboard: True if Horizon runs.
    :ivar watch: True if Prometheus and Alertmanager run, with their exporters and mail server.
    :ivar volumes: True if Cinder runs.
    :ivar network: one of ``NETWORKS``.
    """

    folder: Path
    compute_driver: str
    hosts: tuple[Host, ...]
    dashboard: bool
    watch: bool
    volumes: bool
    network: str

    @property
    def data(self) -> Path:
        """Directory of the databases, the images and the engines' data roots."""
        return self.folder / "data"

    @property
    def etc(self) -> Path:
        """Directory of the rendered configuration."""
        return self.folder / "etc"

    @property
    def log(self) -> Path:
        """Directory of the logs, one file per program."""
        return self.folder / "log"

    @property
    def run(self) -> Path:
        """Directory of the sockets and pid files."""
        return self.folder / "run"

    @property
    def venv(self) -> Path:
        """Virtual environment with OpenStack and novadocker."""
        return self.folder / "venv"

    @property
    def images(self) -> Path:
        """Directory of the image archives. ``clean`` keeps it, since no cloud data affects it."""
        return self.folder / "images"

    @property
    def dashboard_folder(self) -> Path:
        """Directory of Horizon's virtual environment and static files; ``clean`` keeps it."""
        return self.folder / "horizon"

    @property
    def bin(self) -> Path:
        """Directory of the virtual environment's programs."""
        return self.venv / "bin"

    @property
    def secrets_file(self) -> Path:
        """File of the generated passwords, created and deleted with the databases."""
        return self.data / "secrets.json"

    def host_data(self, host: Host) -> Path:
        """Directory of the data of one host's services."""
        return self.data / "hosts" / host.name

    def host_etc(self, host: Host) -> Path:
        """Directory of the rendered configuration of one host's services."""
        return self.etc / "hosts" / host.name

    def host_run(self, host: Host) -> Path:
        """Directory of the sockets and pid files of one host's services."""
        return self.run / "hosts" / host.name

    def host_mounts(self, host: Host) -> Path | None:
        """File of a host's mount namespace; None for the first host, which shares the machine's."""
        return None if host.gateway is None else self.run / "mounts" / host.name

    def engine_socket(self, host: Host) -> Path:
        """The Docker Engine's socket."""
        return self.host_run(host) / "docker.sock"

    def lxcfs_folder(self, host: Host) -> Path:
        """The mount point of lxcfs."""
        return self.host_run(host) / "lxcfs"

    def tenant_namespace(self, network: str) -> str:
        """Name of the first host's network namespace that reaches a tenant's network by its id.

        With OVN, this is a namespace of ``observers``.
        """
        return f"{'observer' if self.network == 'ovn' else 'qdhcp'}-{network}"

    def network_agent(self, host: Host) -> str:
        """Name of the program that sets the flows of a host's switch."""
        kind = "ovn-controller" if self.network == "ovn" else "neutron-ovs"
        return f"{kind}-{host.name}"

    def switch_socket(self, host: Host) -> Path:
        """Open vSwitch's database socket."""
        return self.host_run(host) / "ovs" / "db.sock"


class SettingsError(Exception):
    """The environment has an invalid setting; the text names the remedy."""


def load_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings from the environment and the existing cloud.

    :param environment: ``DEVCLOUD_DIR`` is the state directory (default ``.devcloud`` in the
        checkout), ``DEVCLOUD_COMPUTE_DRIVER`` the driver (default ``docker.DockerDriver``),
        ``DEVCLOUD_HOSTS`` the number of compute hosts (default: as many as the cloud has, 1 for a
        new cloud). ``DEVCLOUD_HORIZON`` is 1 with the dashboard, 0 without (default: as the cloud
        is); ``DEVCLOUD_WATCH`` selects Prometheus and ``DEVCLOUD_VOLUMES``
        Cinder in the same form.
        ``DEVCLOUD_NETWORK`` is one of ``NETWORKS`` (default: as the cloud has, ``ovs`` for a new
        cloud).
    :raises SettingsError: the directory's path is too long for Unix sockets, or the number of hosts
        or the kind of network is invalid.
    """
    folder = Path(environment.get("DEVCLOUD_DIR") or CHECKOUT / ".devcloud").absolute()
    if len(os.fsencode(folder)) > LONGEST_STATE_FOLDER:
        raise SettingsError(
            f"{folder} is longer than {LONGEST_STATE_FOLDER} bytes, which the Unix sockets in it"
            " do not allow: set DEVCLOUD_DIR to a shorter path"
        )
    return Settings(
        folder=folder,
        compute_driver=environment.get("DEVCLOUD_COMPUTE_DRIVER") or "docker.DockerDriver",
        hosts=tuple(compute_host(number + 1) for number in range(_host_count(folder, environment))),
        dashboard=_has(environment.get("DEVCLOUD_HORIZON"), dashboard_file(folder)),
        watch=_has(environment.get("DEVCLOUD_WATCH"), watch_file(folder)),
        volumes=_has(environment.get("DEVCLOUD_VOLUMES"), volumes_file(folder)),
        network=_network(folder, environment),
    )


def hosts_file(folder: Path) -> Path:
    """Return the path of the file that contains the cloud's number of compute hosts."""
    return folder / "data" / "host-count"


def dashboard_file(folder: Path) -> Path:
    """Return the path of the file that exists if the cloud has a dashboard."""
    return folder / "data" / "dashboard"


def watch_file(folder: Path) -> Path:
    """Return the path of the file that exists if the cloud has Prometheus."""
    return folder / "data" / "watch"


def volumes_file(folder: Path) -> Path:
    """Return the path of the file that exists if the cloud has Cinder."""
    return folder / "data" / "volumes"


def network_file(folder: Path) -> Path:
    """Return the path of the file that contains the cloud's kind of network."""
    return folder / "data" / "network"


def observers_file(folder: Path) -> Path:
    """Return the path of the file that contains the names of the namespaces of ``observers``."""
    return folder / "data" / "observers"


def compute_host(number: int) -> Host:
    """Return the compute host of a number; the first shares the controller's namespace."""
    first = number == 1
    # Each host but the first has a link subnet of four addresses.
    link = 4 * (number - 2)
    return Host(
        name=f"host{number}",
        number=number,
        namespace=NAMESPACE if first else f"{NAMESPACE}-host{number}",
        gateway=None if first else f"172.31.254.{link + 1}",
        address=API_ADDRESS if first else f"172.31.254.{link + 2}",
        tunnel_address=f"172.31.253.{number}",
        network_node=first,
    )


def _host_count(folder: Path, environment: Mapping[str, str]) -> int:
    known = hosts_file(folder)
    has = int(known.read_text()) if known.exists() else 1
    wanted = environment.get("DEVCLOUD_HOSTS") or str(has)
    if not wanted.isdecimal() or int(wanted) not in range(has, MOST_HOSTS + 1):
        raise SettingsError(
            f"DEVCLOUD_HOSTS is {wanted!r}, but must be a number from {has}, which the cloud has,"
            f" to {MOST_HOSTS}; make clean deletes the cloud"
        )
    return int(wanted)


def _network(folder: Path, environment: Mapping[str, str]) -> str:
    known = network_file(folder)
    has = known.read_text() if known.exists() else None
    wanted = environment.get("DEVCLOUD_NETWORK") or has or NETWORKS[0]
    if wanted not in NETWORKS or has not in (None, wanted):
        raise SettingsError(
            f"DEVCLOUD_NETWORK is {wanted!r}, but must be {has or ' or '.join(NETWORKS)}; a cloud"
            " keeps its kind of network, and make clean deletes the cloud"
        )
    return wanted


def _has(wanted: str | None, noted: Path) -> bool:
    return wanted == "1" if wanted else noted.exists()


def load_secrets(settings: Settings) -> dict[str, str]:
    """Return the cloud's passwords by name; the first call creates them."""
    if not settings.secrets_file.exists():
        settings.data.mkdir(parents=True, exist_ok=True)
        made = {name: secrets.token_hex(12) for name in SECRET_NAMES}
        settings.secrets_file.touch(mode=0o600)
        settings.secrets_file.write_text(json.dumps(made, indent=1))
    loaded: dict[str, str] = json.loads(settings.secrets_file.read_text())
    return loaded
