# SPDX-License-Identifier: Apache-2.0
"""The registry of the kinds of VIF: a new kind is one class and one line here."""

from collections.abc import Callable, Mapping

from nova.network import model as network_model

from novadocker.virt.docker.network.kinds import refused
from novadocker.virt.docker.network.kinds.hybrid import HybridOpenVSwitch
from novadocker.virt.docker.network.kinds.kind import Kind, Switch
from novadocker.virt.docker.network.kinds.linux_bridge import LinuxBridge
from novadocker.virt.docker.network.kinds.open_vswitch import OpenVSwitch
from novadocker.virt.docker.network.kinds.tap import NovadockerTap


class Registry:
    """The kinds of VIF of this host. At most one supported kind matches a VIF."""

    def __init__(self, switch: Switch, interfaces: Callable[[], Mapping[str, str]]) -> None:
        """Create the kinds.

        :param interfaces: returns the host's interface to each physical network
        """
        self.supported: tuple[Kind, ...] = (
            OpenVSwitch(switch),
            HybridOpenVSwitch(switch),
            NovadockerTap(interfaces),
            LinuxBridge(),
        )
        types = list(dict.fromkeys(kind.vif_type for kind in self.supported))
        self._kinds: tuple[Kind, ...] = (
            refused.BindingFailed(),
            refused.UnsupportedVnicType(),
            *self.supported,
            refused.UnknownType(types),
        )

    def kind_of(self, vif: network_model.VIF) -> Kind:
        """Return the kind of a VIF; a kind that refuses the VIF if no other matches."""
        return next(kind for kind in self._kinds if kind.matches(vif))
