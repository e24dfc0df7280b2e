# SPDX-License-Identifier: Apache-2.0
"""The options of the group ``[docker]``."""

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
URL of the Docker Engine's REST API.

The user of nova-compute needs access to it. For a Unix socket, add the user to the group that owns
the socket (usually ``docker``), or use the socket of ``novadocker-engine-proxy``
(``unix:///run/novadocker-engine-proxy.sock``), which gives less power.
""",
    ),
    cfg.StrOpt(
        "ca_file",
        default="",
        help="""
File of CA certificates (PEM) that verify the engine's certificate if ``api_url`` begins with
``https``.

If unset, the system's CA certificates verify it. Verification cannot be turned off.
""",
    ),
    cfg.StrOpt(
        "cert_file",
        default="",
        help="""
File of the client certificate (PEM) that nova-compute presents to the engine if ``api_url`` begins
with ``https``.
""",
    ),
    cfg.StrOpt(
        "key_file",
        default="",
        help="""
File of the private key (PEM) of ``cert_file``.
""",
    ),
    cfg.IntOpt(
        "api_timeout",
        default=60,
        min=1,
        help="""
Seconds after which a request to the engine fails if the engine sends nothing.

For a request that stops a server, the time that Nova allows the server for its shutdown is added.
""",
    ),
    cfg.StrOpt(
        "runtime",
        default="novadocker",
        help="""
Name of the runtime shim in the engine's ``daemon.json``.

The shim makes a container join the network namespace that the driver created for its server.
""",
    ),
    cfg.DictOpt(
        "physical_interface_mappings",
        default={},
        help="""
This host's interface to each physical network, such as ``physnet1:eth1,physnet2:br0``.

Used for ports that Neutron's mechanism driver ``novadocker`` binds. The driver adds the interface,
or a VLAN sub-interface of it, to one Linux bridge for each network, so the interface must not have
an IP address. Instead of an interface, the operator may name an existing Linux bridge, which may
have IP addresses: ports of flat networks are added to that bridge.
""",
    ),
    cfg.IntOpt(
        "image_load_timeout",
        default=900,
        min=1,
        help="Seconds after which the load of an image archive into the engine fails.",
    ),
    cfg.ListOpt(
        "allowed_registries",
        default=[],
        sample_default=["registry.example.com:5000"],
        help="""
Registries from which images may be pulled, each as host or host:port; ``docker.io`` is Docker Hub.

If a Glance image has no data and its property ``docker_image`` names an image in one of these
registries, the engine pulls that image. CA certificates for a registry belong in the engine's
directory ``certs.d``.
""",
    ),
    cfg.MultiStrOpt(
        "registry_mirrors",
        default=[],
        help="""
Mirrors that are tried, in order, before a registry; one line for each registry.

For example ``registry.example.com=mirror-a.example.com:5000,mirror-b.example.com:5000``. List the
mirrors in the host's own region first. A mirror is trusted like its registry.
""",
    ),
    cfg.StrOpt(
        "registry_credentials_file",
        default="",
        help="""
File with credentials for registries, in the format of ``config.json`` of ``docker login``.

A token server on another host than its registry, as GitLab's may be, needs an entry of its own.
Moves through ``transfer_registry`` send credentials only to the host of their entry.

nova-compute must be able to read it. Tenants can boot every image that the credentials give access
to.
""",
    ),
    cfg.ListOpt(
        "registry_verify_command",
        default=[],
        sample_default=["/usr/local/bin/verify-image"],
        help="""
Command that verifies an image of a registry before the engine pulls it; none if empty.

The image is appended as the last argument, such as ``registry.example.com/base/web@sha256:...``;
the engine pulls exactly this digest. No shell reads the words. The command runs as the user of
nova-compute. If it does not exit with status 0 within 60 seconds, the image does not boot. What it
writes to its standard error is only in the log of nova-compute.

With ``[glance] verify_glance_signatures``, images of registries boot only if this command is set.

Related options:

* ``allowed_registries``
* ``registry_mirrors``
""",
    ),
    cfg.IntOpt(
        "snapshot_depth",
        default=10,
        min=1,
        max=100,
        help="""
Largest number of snapshot layers in an image.

Each snapshot of a server that was booted from a snapshot adds a layer, and the engine supports at
most 125 layers. When this number is exceeded, all snapshot layers are written as one layer on top
of the image that the first server was booted from.
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
        "default_name_servers",
        item_type=cfg.types.IPAddress(),
        default=[],
        sample_default=["192.0.2.53"],
        help="""
Addresses of name servers for servers whose subnets have none.

Neutron's DHCP agent is a name server, so the driver writes its address to ``/etc/resolv.conf``. OVN
has no such agent, and would return ``[ovn] dns_servers`` of Neutron's configuration by DHCP, which
the driver cannot read: set the same addresses here.
""",
    ),
    cfg.ListOpt(
        "image_extra_specs",
        default=[],
        item_type=cfg.types.String(choices=list(extra_specs.ALL)),
        help="""
Extra specs of ``docker:`` that an image may set by its properties.

The property's name has ``docker_`` instead of ``docker:``, such as ``docker_shm_size_mb``. A value
in the flavor overrides the image's. An image that sets an extra spec that is not in this list does
not boot, because otherwise its owner would believe that the setting has an effect.
""",
    ),
    cfg.BoolOpt(
        "environment_from_metadata",
        default=False,
        help="""
Whether the metadata ``docker_env_NAME`` of a server sets the environment variable NAME of its first
process.

The property ``docker_env_NAME`` of an image always does. If false, a server with such metadata does
not boot.
""",
    ),
    cfg.IntOpt(
        "console_log_max_mb",
        default=10,
        min=1,
        help="MiB of console output that the engine keeps for a server, in two files.",
    ),
    cfg.StrOpt(
        "lxcfs_folder",
        default="/var/lib/lxcfs",
        help="""
Mount point of lxcfs on this host. With lxcfs servers see their own values in /proc.

A server that is created while lxcfs is not mounted sees the host's values for its whole life. An
empty value turns lxcfs off.
""",
    ),
    cfg.ListOpt(
        "serial_console_proxies",
        default=["127.0.0.1"],
        help="""
Addresses, or networks such as ``192.0.2.0/28``, of the hosts that run nova-serialproxy.

The port of a serial console accepts connections only from these addresses, because the port itself
does not ask for a token.

Related options:

* ``[serial_console] enabled``
* ``[serial_console] proxyclient_address``: address on which the ports of consoles are opened
* ``[serial_console] port_range``
* ``[docker] serial_console_users``: users who may connect from this host
""",
    ),
    cfg.ListOpt(
        "serial_console_users",
        default=[],
        help="""
Names or ids of users whose programs on this host may connect to the ports of serial consoles.

Root and the user of nova-compute always may. Add the user of a nova-serialproxy on this host if it
is another one. Programs on other hosts are accepted by their address only.

Related options:

* ``[docker] serial_console_proxies``
""",
    ),
    cfg.FloatOpt(
        "start_grace",
        default=0.05,
        min=0.0,
        help="""
Seconds that the first process of a new server must run for its boot to succeed.

If the process exits earlier, the boot fails, and the fault has its exit status and the last lines
of its output.
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

``{host}`` is replaced by ``[DEFAULT] my_ip`` of that host. The command runs as the user of
nova-compute, and ``novadocker-receive`` must run as that user on the other host. It reads the
options of nova-compute: if they are not in ``/etc/nova/nova.conf``, add ``--config-file``.

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
Registry, with a path in it, through which servers move. If empty, data goes directly from host to
host.

The registry must use TLS and must allow the deletion of data. Both hosts must have the same value.
If the registry asks for credentials or tokens, both need credentials in
``registry_credentials_file``. The hosts also need ``transfer_command``, but no data of the server
goes through that command.

Related options:

* ``registry_credentials_file``
* ``transfer_command``
""",
    ),
    cfg.StrOpt(
        "user_namespaces",
        default="host",
        choices=[
            ("host", "Users of servers are users of the host with the same ids."),
            ("own", "Each server has a user namespace of its own if this host can provide it."),
            ("required", "As ``own``, but nova-compute does not start if it cannot provide it."),
        ],
        help="""
Whether each server has a user namespace of its own, in which its root user is an unprivileged user
of the host.

The owners of files on the disk stay the same. This host can provide it if the kernel can mount an
overlay of idmapped layers (Linux 5.19 on ext4, XFS or Btrfs), the engine's storage driver is
``overlay2``, and the engine does not remap users itself (``userns-remap``). nova-compute tries this
when it starts, and again until it has an answer if the trial fails, for example because the disk
is full. Meanwhile servers that would get a user namespace of their own do not start. The trait
``CUSTOM_DOCKER_USER_NAMESPACE`` is set if it succeeds.

A flavor's extra spec ``docker:userns`` takes precedence. A change applies to each server at its
next start by Nova.

Related options:

* ``user_namespace_ids``
""",
    ),
    cfg.StrOpt(
        "user_namespace_ids",
        default="1879048192:268304384",
        help="""
Ids of users and groups of this host for the user namespaces of servers, as FIRST:COUNT.

Each running server uses 65536 of them, so the default is enough for 4094 servers. Both numbers are
multiples of 65536. No account of the host, no range in ``/etc/subuid`` and no other program may use
the ids.

Related options:

* ``user_namespaces``
""",
    ),
    cfg.ListOpt(
        "volume_modes",
        default=["raw"],
        item_type=cfg.types.String(choices=["raw", "mount"]),
        help="""
What servers of this host may do with Cinder's volumes.

* ``raw``: have them as block devices.
* ``mount``: boot from them. Then the kernel of the host mounts the file system of the volume, which
  tenants can write as they like. A flaw in the kernel's ext4 is then a way out of a server.
""",
    ),
    cfg.StrOpt(
        "suspend",
        default=extra_specs.RAM,
        choices=[
            (extra_specs.RAM, "The processes are frozen, and their memory stays allocated."),
            (extra_specs.DISK, "CRIU writes the memory to the disk, and the processes end."),
        ],
        help="""
Where a suspended server has the memory of its processes.

With ``disk``, the memory is in files below ``/var/lib/novadocker/checkpoints`` that only root can
read, until the server is resumed, started anew or deleted. If CRIU can't write it, the processes
are frozen as with ``ram``, and an event of the server's action tells why. It can't write servers
with a user namespace of their own.

A flavor's extra spec ``docker:suspend`` takes precedence.

Related options:

* ``criu``
* ``user_namespaces``
""",
    ),
    cfg.StrOpt(
        "criu",
        default="",
        regex=r"^((/[\w.@+-]+)+/criu)?$",
        help="""
Path of the program ``criu``, version 4.1 or newer, which writes suspended servers to the disk.

If unset, the program is searched in the ``PATH`` of the privileged helper. No user but root may be
able to change the program or a directory above it.

Related options:

* ``suspend``
""",
    ),
    cfg.IntOpt(
        "copy_interval",
        default=0,
        min=0,
        help="""
Minutes between two copies of each running server in ``transfer_registry``; 0 for no copies.

An evacuated server gets the data of its last copy. If there is no copy, the server is built from
its image. A server is frozen while the data that changed since the first pass is copied.

Related options:

* ``transfer_registry``
""",
    ),
]


def register_opts(configuration: cfg.ConfigOpts) -> None:
    """Register the group ``[docker]``. Idempotent."""
    configuration.register_group(GROUP)
    configuration.register_opts(OPTIONS, group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[Any]]]:
    """Return the options for oslo-config-generator and the documentation."""
    return [(GROUP, OPTIONS)]


CONF = conf.CONF
register_opts(CONF)
