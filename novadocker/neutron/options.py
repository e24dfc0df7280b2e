# SPDX-License-Identifier: Apache-2.0
"""Options of the mechanism driver, in Neutron's configuration."""

from typing import Any

from oslo_config import cfg

GROUP = cfg.OptGroup(
    "ml2_novadocker",
    title="Mechanism driver novadocker",
    help="Ports on Linux bridges of compute hosts that run the novadocker driver.",
)

OPTIONS = [
    cfg.ListOpt(
        "hosts",
        default=[],
        help="""
Hosts whose ports this driver binds, by ``[DEFAULT]host`` of their nova-compute.

Shell patterns such as ``compute-*`` are allowed. On a host that runs an agent as well, the order
of ``[ml2]mechanism_drivers`` decides who binds.
""",
    ),
    cfg.ListOpt(
        "physical_networks",
        default=[],
        help="""
Physical networks that lead to Linux bridges there; empty is all of them.

Each host says in ``[docker]physical_interface_mappings`` which of its interfaces that is.
""",
    ),
    cfg.BoolOpt(
        "allow_port_security",
        default=False,
        help="""
Bind ports with port security, though nothing enforces it.

A Linux bridge of novadocker filters nothing: security groups have no effect, and a server may use
any MAC and IP address. Unless this is set, only ports without port security are bound.
""",
    ),
]


def register_opts(configuration: cfg.ConfigOpts) -> None:
    """Register the group; harmless when repeated."""
    configuration.register_group(GROUP)
    configuration.register_opts(OPTIONS, group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[Any]]]:
    """Return the options for oslo-config-generator."""
    return [(GROUP, OPTIONS)]
