# SPDX-License-Identifier: Apache-2.0
"""A weigher that keeps a resized instance on its host if the new flavor fits there."""

from __future__ import annotations

from nova import objects
from nova.scheduler import host_manager, weights

# The multiplier exceeds the default of BuildFailureWeigher (1,000,000): failed builds of other
# tenants are no reason to stop an instance and to move it.
_MULTIPLIER = 1e9


class SameHostWeigher(weights.BaseHostWeigher):
    """A weigher for ``[filter_scheduler]weight_classes`` that prefers the instance's present host.

    Without it, Nova's own weighers prefer other hosts for a resize. It does not change the order
    of hosts for an instance that has no host, such as a new one.
    """

    def weight_multiplier(self, host_state: host_manager.HostState) -> float:  # noqa: ARG002
        """Return the multiplier of this weigher."""
        return _MULTIPLIER

    def _weigh_object(
        self, host_state: host_manager.HostState, weight_properties: objects.RequestSpec
    ) -> float:
        return float(weight_properties.instance_uuid in host_state.instances)
