# SPDX-License-Identifier: Apache-2.0
"""The diagnostics of an instance."""

from __future__ import annotations

from typing import Any

import psutil
from nova import objects

from novadocker.linux import cgroup
from novadocker.virt.docker.containers import diagnostics, servers
from novadocker.virt.docker.network import nic
from novadocker.virt.docker.operations.services import Services


class Diagnostics:
    """Reads the counters of instances."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def read(self, instance: objects.Instance) -> objects.Diagnostics:
        """Return the instance's counters since its start."""
        found = self._services.look_up(instance)
        counters = psutil.net_io_counters(pernic=True)
        vifs = nic.nics_from_network_info(instance.get_network_info() or [])
        return diagnostics.diagnostics(
            servers.power_state_of(found),
            found.started_at,
            self._services.engine.read_usage(found.id) if found.pid else None,
            [
                (
                    vif.mac,
                    counters[vif.host_device]._asdict() if vif.host_device in counters else None,
                )
                for vif in vifs
            ],
            bool(instance.config_drive),
        )

    def read_free_form(self, instance: objects.Instance) -> dict[str, Any]:
        """Return the diagnostics in the free form that API versions before 2.48 show.

        Only this form can have the number of processes that were killed out of memory.
        """
        found = self._services.look_up(instance)
        fields = self.read(instance).obj_to_primitive()["nova_object.data"]
        return {
            "oom_kills": cgroup.read_oom_kills(found.pid, found.id) if found.pid else 0,
            **{name: value for name, value in fields.items() if isinstance(value, (str, int))},
        }
