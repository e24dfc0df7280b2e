# SPDX-License-Identifier: Apache-2.0
"""Keeps a resize on the host where the server is, if the new flavor fits there."""

from __future__ import annotations

from nova import objects
from nova.scheduler import host_manager, weights

# more than all of Nova's weighers of load together, whose multipliers are 1 unless told otherwise,
# and less than those of failed builds and of other cells
_MULTIPLIER = 1000.0


class SameHostWeigher(weights.BaseHostWeigher):
    """Prefers the host that has the instance already; for ``[filter_scheduler]weight_classes``.

    Nova's own weighers push a resize away from it. What has no host yet, a new server above all,
    is weighed as before.
    """

    def weight_multiplier(self, host_state: host_manager.HostState) -> float:  # noqa: ARG002
        """Return how much this weigher counts."""
        return _MULTIPLIER

    def _weigh_object(
        self, host_state: host_manager.HostState, weight_properties: objects.RequestSpec
    ) -> float:
        return float(weight_properties.instance_uuid in host_state.instances)
