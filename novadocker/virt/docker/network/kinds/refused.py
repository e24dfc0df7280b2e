# SPDX-License-Identifier: Apache-2.0
"""Kinds of VIF that this driver refuses, with the reasons."""

from collections.abc import Sequence

from nova.network import model as network_model

from novadocker.virt.docker.network.kinds.kind import Kind


class BindingFailed(Kind):
    """Ports that no mechanism driver of Neutron could bind."""

    vif_type = network_model.VIF_TYPE_BINDING_FAILED

    def refusal(self, vif: network_model.VIF) -> str | None:
        """Return the refusal."""
        return "Neutron could not bind it to this host (binding_failed): is its agent up here?"


class UnsupportedVnicType(Kind):
    """Ports that need hardware of the host, such as SR-IOV."""

    def matches(self, vif: network_model.VIF) -> bool:
        """Return True if the vnic_type is not ``normal``."""
        return bool(vif["vnic_type"] != network_model.VNIC_TYPE_NORMAL)

    def refusal(self, vif: network_model.VIF) -> str | None:
        """Return the refusal, which names the vnic_type."""
        return f"its vnic_type is {vif['vnic_type']!r}; only 'normal' is supported"


class UnknownType(Kind):
    """Ports of every vif_type that no other kind has."""

    def __init__(self, supported: Sequence[str | None]) -> None:
        """Create the kind.

        :param supported: the vif_types that the refusal lists
        """
        *first, last = (repr(vif_type) for vif_type in supported)
        self._supported = f"{', '.join(first)} and {last}"

    def matches(self, vif: network_model.VIF) -> bool:
        """Return True."""
        return True

    def refusal(self, vif: network_model.VIF) -> str | None:
        """Return the refusal, which names the vif_type."""
        return f"its vif_type is {vif['type']!r}; only {self._supported} are supported"
