# SPDX-License-Identifier: Apache-2.0
"""Every option of the ``[docker]`` group; the only place where options are declared."""

from typing import Any

from nova import conf
from oslo_config import cfg

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
    cfg.IntOpt(
        "image_load_timeout",
        default=900,
        min=1,
        help="Seconds that the engine may take to load one image archive.",
    ),
    cfg.IntOpt(
        "default_pids_limit",
        default=4096,
        min=16,
        help="Largest number of processes and threads in a server.",
    ),
    cfg.IntOpt(
        "console_log_max_mb",
        default=10,
        min=1,
        help="MiB of console output that the engine keeps for a server, over two files.",
    ),
    cfg.FloatOpt(
        "start_grace",
        default=0.1,
        min=0.0,
        help="""
Seconds for which the first process of a new server must run for its boot to succeed.

A process that ends within them is reported as a failed boot, with its exit code and last lines.
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
