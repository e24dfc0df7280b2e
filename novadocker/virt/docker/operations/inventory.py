# SPDX-License-Identifier: Apache-2.0
"""The inventory and the traits of this host in Placement, and its resources in Nova."""

from __future__ import annotations

from nova.compute import provider_tree as placement

from novadocker import exception
from novadocker.conf import CONF
from novadocker.virt.docker.host import resources, topology, traits
from novadocker.virt.docker.model import EngineInfo
from novadocker.virt.docker.operations.services import Services


class Inventory:
    """Describes this host to Nova and to Placement."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._last: EngineInfo | None = None

    def read(self, nodename: str) -> dict[str, object]:
        """Return the host's resources for Nova's resource tracker.

        If the engine does not answer, these are the last known ones. Nova then calls
        ``update_provider_tree``, which reserves them; an exception would be an error in Nova's log
        each minute.

        :raises EngineUnavailable: the engine has not answered yet
        """
        try:
            info = self._services.engine.info()
        except exception.EngineUnavailable:
            if self._last is None:
                raise
            info = self._last
        self._last = info
        return resources.available_resource(
            nodename,
            info,
            self._services.read_resources(info, self._services.cpu_sets),
            topology.numa_topology(self._services.cells, self._services.cpu_sets),
            # Nova does not count, either, if the option is 0.
            self._services.build_failures.count
            if CONF.compute.consecutive_build_service_disable_threshold
            else 0,
        )

    def write(
        self,
        provider_tree: placement.ProviderTree,
        nodename: str,
        info: EngineInfo,
        ratios: dict[str, float],
        reserved: dict[str, int],
    ) -> None:
        """Write the host's inventory and the driver's traits into the tree."""
        found = self._services.read_resources(info, self._services.cpu_sets)
        provider_tree.update_inventory(nodename, resources.inventory(found, ratios, reserved))
        present = traits.traits(
            resources.architecture(info),
            resources.read_cpu_features(),
            self._services.cells,
            self._services.sized_disks,
            not self._services.try_user_namespaces().impossible,
        )
        provider_tree.add_traits(nodename, *(name for name, there in present.items() if there))
        provider_tree.remove_traits(
            nodename, *(name for name, there in present.items() if not there)
        )
