# SPDX-License-Identifier: Apache-2.0
"""The agentless ML2 mechanism driver for Linux bridges of hosts that run novadocker.

It binds ports of flat and VLAN networks as ``vif_type=tap`` with ``bridge_name``,
``physical_network`` and ``vlan`` in the details; nova-compute does the rest. No agent reports a
port as wired: nova-compute does, by the port's ``data_plane_status``, the attribute that Neutron
has for reports from outside. Until it turns ACTIVE a provisioning block keeps the port down, so
that Nova is told of it (network-vif-plugged) when it is true and not before.
"""

import fnmatch
from collections.abc import Mapping
from typing import Any

from neutron.db import provisioning_blocks
from neutron.objects.port.extensions import data_plane_status as status_objects
from neutron_lib import constants
from neutron_lib import exceptions as neutron_exceptions
from neutron_lib.api.definitions import data_plane_status, port_security, portbindings
from neutron_lib.callbacks import resources
from neutron_lib.plugins.ml2 import api
from oslo_config import cfg
from oslo_log import log as logging

from novadocker.neutron import options

LOG = logging.getLogger(__name__)

ENTITY = "NOVADOCKER"
"""Who a port is waiting for, in Neutron's table of provisioning blocks."""

_DATA_PLANE_STATUS = data_plane_status.DATA_PLANE_STATUS
_NETWORK_TYPES = (constants.TYPE_FLAT, constants.TYPE_VLAN)
# neutron_lib.constants.DEVICE_NAME_MAX_LEN counts 15; the bridges of Neutron's own agent had 14
_BRIDGE_NAME_LENGTH = 14


class StatusExtensionMissing(neutron_exceptions.NeutronException):
    """Without the extension no report can arrive, so no server would ever start."""

    message = (
        "The mechanism driver novadocker needs the extension driver data_plane_status: add it to "
        "[ml2]extension_drivers"
    )


class BridgeMechanismDriver(api.MechanismDriver):
    """Binds ports of novadocker's hosts to Linux bridges."""

    def initialize(self) -> None:
        """Read the options.

        :raises StatusExtensionMissing: Neutron could not be told that a port is wired
        """
        options.register_opts(cfg.CONF)
        if data_plane_status.ALIAS.replace("-", "_") not in cfg.CONF.ml2.extension_drivers:
            raise StatusExtensionMissing

    @property
    def connectivity(self) -> str:
        """What the bound ports have."""
        return str(portbindings.CONNECTIVITY_L2)

    def bind_port(self, context: Any) -> None:
        """Bind a port to the first segment that its host's bridges reach."""
        port = context.current
        if (
            not _is_ours(context.host)
            or port[portbindings.VNIC_TYPE] != portbindings.VNIC_NORMAL
            # DHCP and router ports are plugged by Neutron's agents, which know no such binding
            or not port["device_owner"].startswith(constants.DEVICE_OWNER_COMPUTE_PREFIX)
        ):
            return
        segments = [segment for segment in context.segments_to_bind if _is_reached(segment)]
        if not segments:
            return
        if port.get(port_security.PORTSECURITY) and not _group().allow_port_security:
            LOG.warning(
                "Port %(port)s is not bound on %(host)s: it has port security, which a Linux "
                "bridge of novadocker does not enforce. Disable the port's security, or set "
                "[ml2_novadocker]allow_port_security",
                {"port": port["id"], "host": context.host},
            )
            return
        context.set_binding(
            segments[0][api.ID],
            portbindings.VIF_TYPE_TAP,
            vif_details(port["network_id"], segments[0]),
        )

    def update_port_precommit(self, context: Any) -> None:
        """Keep a port that was just bound down until its host reports; forget older reports."""
        port = context.current
        if context.vif_type == portbindings.VIF_TYPE_UNBOUND:
            self._forget(context)
        elif (
            _bound_by_us(port)
            and context.original_vif_type != portbindings.VIF_TYPE_TAP
            and port["status"] != constants.PORT_STATUS_ACTIVE
        ):
            provisioning_blocks.add_provisioning_component(
                context.plugin_context, port["id"], resources.PORT, ENTITY
            )
            # Neutron's own drivers wait for any agent of theirs on the host, whoever binds
            provisioning_blocks.remove_provisioning_component(
                context.plugin_context,
                port["id"],
                resources.PORT,
                provisioning_blocks.L2_AGENT_ENTITY,
            )

    def update_port_postcommit(self, context: Any) -> None:
        """Let a port go ACTIVE when its host has reported it as wired."""
        port, before = context.current, context.original
        reported = port.get(_DATA_PLANE_STATUS) == constants.ACTIVE
        if reported and _bound_by_us(port) and before.get(_DATA_PLANE_STATUS) != constants.ACTIVE:
            provisioning_blocks.provisioning_complete(
                context.plugin_context, port["id"], resources.PORT, ENTITY
            )

    def _forget(self, context: Any) -> None:
        port = context.current
        # else the port would stay down when another driver binds it
        provisioning_blocks.remove_provisioning_component(
            context.plugin_context, port["id"], resources.PORT, ENTITY
        )
        if port.get(_DATA_PLANE_STATUS):
            status_objects.PortDataPlaneStatus.delete_objects(
                context.plugin_context, port_id=port["id"]
            )
            port[_DATA_PLANE_STATUS] = None


def vif_details(network_id: str, segment: Mapping[str, Any]) -> dict[str, Any]:
    """Pure: return what nova-compute must know of a bound port."""
    details = {
        portbindings.CAP_PORT_FILTER: False,
        portbindings.VIF_DETAILS_CONNECTIVITY: portbindings.CONNECTIVITY_L2,
        portbindings.VIF_DETAILS_BRIDGE_NAME: f"brq{network_id}"[:_BRIDGE_NAME_LENGTH],
        api.PHYSICAL_NETWORK: segment[api.PHYSICAL_NETWORK],
    }
    if segment[api.NETWORK_TYPE] == constants.TYPE_VLAN:
        details[portbindings.VIF_DETAILS_VLAN] = segment[api.SEGMENTATION_ID]
    return details


def _group() -> Any:
    return cfg.CONF.ml2_novadocker


def _is_ours(host: str) -> bool:
    return any(fnmatch.fnmatchcase(host, pattern) for pattern in _group().hosts)


def _is_reached(segment: Mapping[str, Any]) -> bool:
    known = _group().physical_networks
    return segment[api.NETWORK_TYPE] in _NETWORK_TYPES and (
        not known or segment[api.PHYSICAL_NETWORK] in known
    )


def _bound_by_us(port: Mapping[str, Any]) -> bool:
    return bool(
        port[portbindings.VIF_TYPE] == portbindings.VIF_TYPE_TAP
        and _is_ours(port[portbindings.HOST_ID])
    )
