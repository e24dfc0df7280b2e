# SPDX-License-Identifier: Apache-2.0
"""VIFs on a Linux bridge of Neutron's Linux bridge agent (Nova 33 and older)."""

from nova.network import model as network_model

from novadocker.privsep.network.types import Bridge
from novadocker.virt.docker.network.kinds.kind import Kind

# as Neutron names the bridge of a network
_PREFIX = "brq"


class LinuxBridge(Kind):
    """Ports whose host device goes into the bridge that Neutron's agent names and connects."""

    vif_type = network_model.VIF_TYPE_BRIDGE

    def refusal(self, vif: network_model.VIF) -> str | None:
        """Return the refusal of a bridge that does not bear a name of Neutron's."""
        bridge = (vif["network"] and vif["network"]["bridge"]) or ""
        if not bridge.startswith(_PREFIX):
            return f"its bridge is {bridge!r}, which is not Neutron's"
        return None

    def bridge(self, vif: network_model.VIF) -> Bridge | None:
        """Return the bridge of the port's network. Neutron's agent puts the uplink into it."""
        return Bridge(vif["network"]["bridge"])
