# SPDX-License-Identifier: Apache-2.0
"""Every option of the ``[docker]`` group; the only place where options are declared."""

from typing import Any

from nova import conf
from oslo_config import cfg

from novadocker import extra_specs

GROUP = cfg.OptGroup(
    "docker",
    title="Docker driver options",
    help="Options of the novadocker compute driver (``compute_driver = docker.DockerDriver``).",
)

OPTIONS = [
    cfg.StrOpt(
        "api_url",
        default="unix:///var/run/docker.sock",
        regex=r"^(unix|tcp|https?)://",
        help="""
Address of the Docker Engine's REST API.

The user that runs nova-compute needs access to it: for a Unix socket, membership in the
group that owns the socket (usually ``docker``).
""",
    ),
    cfg.StrOpt(
        "ca_file",
        default="",
        help="""
Certificates of the authorities that may have signed the engine's, for an ``api_url`` that begins
with ``https``.

The engine's certificate is always verified, by the system's authorities if there is no file.
""",
    ),
    cfg.StrOpt(
        "cert_file",
        default="",
        help="""
Certificate by which the engine knows nova-compute, for an ``api_url`` that begins with ``https``.
""",
    ),
    cfg.StrOpt(
        "key_file",
        default="",
        help="""
Private key of ``cert_file``.
""",
    ),
    cfg.IntOpt(
        "api_timeout",
        default=60,
        min=1,
        help="""
Seconds that a single request to the engine may take without any answer.

A request that waits for a server to stop may take as much longer as Nova allows the server.
""",
    ),
    cfg.StrOpt(
        "runtime",
        default="novadocker",
        help="""
Name under which the runtime shim is registered in the engine's ``daemon.json``.

The shim lets a container join the network namespace that the driver made for its server.
""",
    ),
    cfg.DictOpt(
        "physical_interface_mappings",
        default={},
        help="""
This host's interface to each physical network, as ``physnet1:eth1,physnet2:br0``.

For ports that Neutron's mechanism driver ``novadocker`` binds. The interface carries no address
of the host's; the driver puts it, or a VLAN sub-interface of it, into a Linux bridge for each
network. A Linux bridge of the operator's may stand for the interface: ports of flat networks go
into that one, and it may have addresses.
""",
    ),
    cfg.IntOpt(
        "image_load_timeout",
        default=900,
        min=1,
        help="Seconds that the engine may take to load one image archive.",
    ),
    cfg.ListOpt(
        "allowed_registries",
        default=[],
        sample_default=["registry.example.com:5000"],
        help="""
Registries from which images may come, each as host or host:port, ``docker.io`` for Docker Hub.

A Glance image without data whose property ``docker_image`` names an image of one of them is fetched
from there. Certificates of own authorities belong into the engine's folder ``certs.d``.
""",
    ),
    cfg.MultiStrOpt(
        "registry_mirrors",
        default=[],
        help="""
Mirrors that are asked before a registry, in order; one line for each registry.

Such as ``registry.example.com=mirror-a.example.com:5000,mirror-b.example.com:5000``. Those of the
host's own region come first. A mirror is trusted as its registry is.
""",
    ),
    cfg.StrOpt(
        "registry_credentials_file",
        default="",
        help="""
A file with credentials for registries, as ``docker login`` writes it to ``config.json``.

It must be readable for nova-compute. Tenants can use whatever images the credentials open.
""",
    ),
    cfg.IntOpt(
        "snapshot_depth",
        default=10,
        min=1,
        max=100,
        help="""
Largest number of layers of snapshots that an image may have.

Each snapshot of a server that was booted from a snapshot adds a layer, and the engine takes no more
than 125. Beyond this number they are written as one layer over the image that the first server was
booted from.
""",
    ),
    cfg.IntOpt(
        "default_pids_limit",
        default=4096,
        min=16,
        help="""
Largest number of processes and threads in a server whose flavor has no ``docker:pids_limit``.
""",
    ),
    cfg.ListOpt(
        "image_extra_specs",
        default=[],
        item_type=cfg.types.String(choices=list(extra_specs.ALL)),
        help="""
Extra specs of ``docker:`` that an image may set by its properties.

The property has ``docker_`` for ``docker:``, such as ``docker_shm_size_mb``. The flavor's word
goes first. An image that sets another one does not boot, so that nobody believes it holds.
""",
    ),
    cfg.IntOpt(
        "console_log_max_mb",
        default=10,
        min=1,
        help="MiB of console output that the engine keeps for a server, over two files.",
    ),
    cfg.StrOpt(
        "lxcfs_folder",
        default="/var/lib/lxcfs",
        help="""
Where lxcfs is mounted on this host, by which servers see their own values in /proc.

Servers that are created while nothing is mounted there see the host's values, for good. An empty
value turns lxcfs off.
""",
    ),
    cfg.ListOpt(
        "serial_console_proxies",
        default=["127.0.0.1"],
        help="""
Addresses, or networks such as ``192.0.2.0/28``, of the hosts that run nova-serialproxy.

Serial consoles take connections from these alone: whoever reaches the port of a console needs no
token any more.

Related options:

* ``[serial_console] enabled``
* ``[serial_console] proxyclient_address``: where the ports of consoles are opened
* ``[serial_console] port_range``
""",
    ),
    cfg.FloatOpt(
        "start_grace",
        default=0.05,
        min=0.0,
        help="""
Seconds for which the first process of a new server must run for its boot to succeed.

A process that ends within them is reported as a failed boot, with its exit code and last lines.
""",
    ),
    cfg.ListOpt(
        "transfer_command",
        default=[
            *("ssh", "-o", "BatchMode=yes"),
            *("-o", "ConnectTimeout=15"),
            *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"),
            *("{host}", "novadocker-receive"),
        ],
        help="""
Command that starts ``novadocker-receive`` on the host that a server moves to.

``{host}`` is that host's ``[DEFAULT] my_ip``. The command runs as nova-compute's user, and so must
``novadocker-receive`` there. It needs the options of nova-compute: where they are not in
``/etc/nova/nova.conf``, say so with ``--config-file``.

Related options:

* ``[DEFAULT] my_ip``
""",
    ),
    cfg.StrOpt(
        "transfer_registry",
        default="",
        regex=r"^$|^[A-Za-z0-9.-]+(:\d+)?/[a-z0-9][a-z0-9/._-]*[a-z0-9]$",
        sample_default="registry.example.com:5000/moves",
        help="""
A registry, and the folder in it, by which servers move; empty for straight from host to host.

It speaks TLS and lets data be removed. Both hosts must have the same value, and credentials for it
in the file of ``registry_credentials_file`` if it asks for them. The command of
``transfer_command`` is needed as well, but no data goes that way.

Related options:

* ``registry_credentials_file``
* ``transfer_command``
""",
    ),
    cfg.IntOpt(
        "copy_interval",
        default=0,
        min=0,
        help="""
Minutes between two copies of each running server in the registry; 0 for no copies.

An evacuated server is what its last copy has; without one it is built from its image. While the
difference to what was read before is copied, the server stands still.

Related options:

* ``transfer_registry``
""",
    ),
]


def register_opts(configuration: cfg.ConfigOpts) -> None:
    """Register the ``[docker]`` group; harmless when repeated."""
    configuration.register_group(GROUP)
    configuration.register_opts(OPTIONS, group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[Any]]]:
    """Return the options for oslo-config-generator and the documentation."""
    return [(GROUP, OPTIONS)]


CONF = conf.CONF
register_opts(CONF)
