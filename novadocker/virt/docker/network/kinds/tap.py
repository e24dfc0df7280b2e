# SPDX-License-Identifier: Apache-2.0
"""VIFs that the mechanism driver novadocker binds (``novadocker.neutron.mechanism``)."""

from collections.abc import Callable, Mapping

from nova.network import model as network_model

from novadocker.privsep.network.types import Bridge
from novadocker.virt.docker.network.kinds.kind import Kind

# keys of binding:vif_details, see novadocker.neutron.mechanism
_BRIDGE_NAME = "bridge_name"
_PHYSICAL_NETWORK = "physical_network"
_VLAN = "vlan"


class NovadockerTap(Kind):
    """Ports whose host device goes into a bridge that novadocker connects to an interface."""

    vif_type = network_model.VIF_TYPE_TAP
    reported = True

    def __init__(self, interfaces: Callable[[], Mapping[str, str]]) -> None:
        """Create the kind.

        :param interfaces: returns the host's interface to each physical network
        """
        self._interfaces = interfaces

    def refusal(self, vif: network_model.VIF) -> str | None:
        """Return the refusal of another driver's tap, or of an unreachable physical network."""
        details = vif["details"] or {}
        if _BRIDGE_NAME not in details or _PHYSICAL_NETWORK not in details:
            return (
                "its vif_type is 'tap', but Neutron's mechanism driver novadocker did not bind it"
            )
        if details[_PHYSICAL_NETWORK] not in self._interfaces():
            return (
                "this host has no interface for the physical network "
                f"{details[_PHYSICAL_NETWORK]!r} in [docker]physical_interface_mappings"
            )
        return None

    def bridge(self, vif: network_model.VIF) -> Bridge | None:
        """Return the bridge of the port's network, with its interface and VLAN."""
        details = vif["details"]
        interface = self._interfaces()[details[_PHYSICAL_NETWORK]]
        return Bridge(details[_BRIDGE_NAME], interface, details.get(_VLAN))
