# SPDX-License-Identifier: Apache-2.0
"""The interface of a kind of VIF."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Protocol

from nova import objects
from nova.network import model as network_model

from novadocker.privsep.network.types import Bridge

Wait = Callable[[], None]
"""A function that waits until an operation has ended, and raises its error."""


class Plugging(enum.Enum):
    """The moment at which ports of a kind are plugged into a virtual switch."""

    NEVER = enum.auto()
    BEFORE_WIRING = enum.auto()
    """Plugging creates the Linux bridge into which wiring puts the host device."""
    AFTER_WIRING = enum.auto()
    """The switch takes the host device that wiring creates."""


class Switch(Protocol):
    """The virtual switch of this host; ``network.ovs.Switch``.

    Each function raises PlugFailed, which names the port.
    """

    def plug(self, instance: objects.Instance, vif: network_model.VIF) -> Wait:
        """Begin to plug a VIF."""

    def unplug(self, instance: objects.Instance, vif: network_model.VIF) -> None:
        """Unplug a VIF and delete the devices that plugging created."""

    def has_port(self, vif: network_model.VIF) -> bool:
        """Return True if the switch has a port of a VIF."""

    def delete_port(self, vif: network_model.VIF) -> None:
        """Delete the port of a VIF, but not its device."""


class Kind:
    """A kind of VIF. The functions of this class are those of a kind that no switch takes.

    A kind describes a VIF and does one step with it. ``network.vif`` orders the steps.
    """

    vif_type: str | None = None
    """The ``binding:vif_type`` of this kind."""
    plugging = Plugging.NEVER
    reported = False
    """True if nova-compute reports a wired port to Neutron, because no agent of Neutron does."""

    def matches(self, vif: network_model.VIF) -> bool:
        """Return True if a VIF is of this kind."""
        return bool(vif["type"] == self.vif_type)

    def refusal(self, vif: network_model.VIF) -> str | None:
        """Return why this host cannot wire a VIF, or None. No other function gets a refused VIF."""
        return None

    def bridge(self, vif: network_model.VIF) -> Bridge | None:
        """Return the Linux bridge into which wiring puts the host device, or None."""
        return None

    def software_checksums(self, vif: network_model.VIF) -> bool:
        """Return True if the kernel must complete the checksums of the packets that a VIF sends."""
        return False

    def devices(self, vif: network_model.VIF) -> tuple[str, ...]:
        """Return the names of the devices that plugging creates on the host."""
        return ()

    def plug(self, instance: objects.Instance, vif: network_model.VIF) -> Wait:
        """Begin to plug a VIF into the switch. Idempotent.

        :returns: a function that waits for the end; it raises PlugFailed
        """
        return _nothing

    def unplug(self, instance: objects.Instance, vif: network_model.VIF) -> None:
        """Unplug a VIF from the switch. Does nothing if it is not plugged.

        :raises PlugFailed: names the port
        """

    def unplug_stale(self, instance: objects.Instance, vif: network_model.VIF) -> None:
        """Remove a port whose devices are gone from the switch. Does nothing if there is none.

        :raises PlugFailed: names the port
        """

    def replug(self, instance: objects.Instance, vif: network_model.VIF) -> None:
        """Delete a plugged port from the switch and insert it again; the devices stay.

        :raises PlugFailed: names the port
        """

    def other_form(self, vif: network_model.VIF) -> network_model.VIF | None:
        """Return a VIF as another host may have plugged it before the port moved, or None."""
        return None


def _nothing() -> None:
    """Return at once: the end of a plug that has nothing to do."""
