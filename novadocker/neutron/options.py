# SPDX-License-Identifier: Apache-2.0
"""The options of the mechanism driver, in Neutron's configuration."""

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
Hosts whose ports this driver binds, each as ``[DEFAULT]host`` of its nova-compute.

Shell patterns such as ``compute-*`` are allowed. If a Neutron agent runs on the host, too, the
first driver in ``[ml2]mechanism_drivers`` that can bind a port binds it.
""",
    ),
    cfg.ListOpt(
        "physical_networks",
        default=[],
        help="""
Physical networks that these hosts connect to Linux bridges; empty for all physical networks.

Each host maps them to its interfaces in ``[docker]physical_interface_mappings``.
""",
    ),
    cfg.BoolOpt(
        "allow_port_security",
        default=False,
        help="""
Bind ports with port security, although novadocker does not enforce it.

A Linux bridge of novadocker does not filter: security groups have no effect, and a server may use
any MAC and IP address. If false, only ports without port security are bound.
""",
    ),
]


def register_opts(configuration: cfg.ConfigOpts) -> None:
    """Register the group. Idempotent."""
    configuration.register_group(GROUP)
    configuration.register_opts(OPTIONS, group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[Any]]]:
    """Return the options for oslo-config-generator."""
    return [(GROUP, OPTIONS)]
