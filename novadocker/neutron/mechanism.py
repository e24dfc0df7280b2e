# SPDX-License-Identifier: Apache-2.0
"""The ML2 mechanism driver, without an agent, for Linux bridges on hosts that run novadocker.

It binds ports of flat and VLAN networks as ``vif_type=tap`` with ``bridge_name``,
``physical_network`` and ``vlan`` in the details; nova-compute plugs them. There is no agent that
reports a port as plugged, so nova-compute sets the port's ``data_plane_status``, the attribute that
Neutron has for reports from outside. A provisioning block keeps the port DOWN until that attribute
is ACTIVE, so that Neutron sends network-vif-plugged to Nova only after the port is plugged.
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
"""Entity of this driver in Neutron's table of provisioning blocks."""

_DATA_PLANE_STATUS = data_plane_status.DATA_PLANE_STATUS
_NETWORK_TYPES = (constants.TYPE_FLAT, constants.TYPE_VLAN)
# neutron_lib.constants.DEVICE_NAME_MAX_LEN is 15, but the names of the Linux bridge agent's bridges
# had 14 characters.
_BRIDGE_NAME_LENGTH = 14


class StatusExtensionMissing(neutron_exceptions.NeutronException):
    """The extension driver ``data_plane_status`` is not loaded, so no server would ever start."""

    message = (
        "The mechanism driver novadocker needs the extension driver data_plane_status: add it to "
        "[ml2]extension_drivers"
    )


class BridgeMechanismDriver(api.MechanismDriver):
    """The mechanism driver that binds ports of novadocker's hosts to Linux bridges."""

    def initialize(self) -> None:
        """Register the options and check the extension drivers.

        :raises StatusExtensionMissing: nova-compute could not report a port as plugged
        """
        options.register_opts(cfg.CONF)
        if data_plane_status.ALIAS.replace("-", "_") not in cfg.CONF.ml2.extension_drivers:
            raise StatusExtensionMissing

    @property
    def connectivity(self) -> str:
        """The connectivity of bound ports."""
        return str(portbindings.CONNECTIVITY_L2)

    def bind_port(self, context: Any) -> None:
        """Bind a port to the first segment that a Linux bridge of its host can reach."""
        port = context.current
        if (
            not _is_ours(context.host)
            or port[portbindings.VNIC_TYPE] != portbindings.VNIC_NORMAL
            # Neutron's agents plug DHCP and router ports and do not support this binding.
            or not port["device_owner"].startswith(constants.DEVICE_OWNER_COMPUTE_PREFIX)
        ):
            return
        segments = [segment for segment in context.segments_to_bind if _is_reached(segment)]
        if not segments:
            return
        if port.get(port_security.PORTSECURITY) and not _group().allow_port_security:
            LOG.warning(
                "Refused to bind port %(port)s on host %(host)s: it has port security, which a "
                "Linux bridge of novadocker does not enforce. Disable port security on the port, "
                "or set [ml2_novadocker]allow_port_security",
                {"port": port["id"], "host": context.host},
            )
            return
        context.set_binding(
            segments[0][api.ID],
            portbindings.VIF_TYPE_TAP,
            vif_details(port["network_id"], segments[0]),
        )

    def update_port_precommit(self, context: Any) -> None:
        """Keep a newly bound port DOWN until its host reports it; reset an unbound port."""
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
            # Neutron's own mechanism drivers add a block for their agent if one runs on the host,
            # even if they do not bind the port, and the agent would never remove it.
            provisioning_blocks.remove_provisioning_component(
                context.plugin_context,
                port["id"],
                resources.PORT,
                provisioning_blocks.L2_AGENT_ENTITY,
            )

    def update_port_postcommit(self, context: Any) -> None:
        """Remove the provisioning block of a port when its host has reported it as plugged."""
        port, before = context.current, context.original
        reported = port.get(_DATA_PLANE_STATUS) == constants.ACTIVE
        if reported and _bound_by_us(port) and before.get(_DATA_PLANE_STATUS) != constants.ACTIVE:
            provisioning_blocks.provisioning_complete(
                context.plugin_context, port["id"], resources.PORT, ENTITY
            )

    def _forget(self, context: Any) -> None:
        port = context.current
        # If the block stayed, the port would stay DOWN when another driver binds it.
        provisioning_blocks.remove_provisioning_component(
            context.plugin_context, port["id"], resources.PORT, ENTITY
        )
        if port.get(_DATA_PLANE_STATUS):
            status_objects.PortDataPlaneStatus.delete_objects(
                context.plugin_context, port_id=port["id"]
            )
            port[_DATA_PLANE_STATUS] = None


def vif_details(network_id: str, segment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the binding details from which nova-compute plugs a port. Pure."""
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
