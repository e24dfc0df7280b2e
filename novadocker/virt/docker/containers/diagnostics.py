# SPDX-License-Identifier: Apache-2.0
"""The conversion of the engine's counters to Nova's diagnostics; pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from nova import objects
from nova.compute import power_state
from nova.objects import fields
from oslo_utils import timeutils, units

from novadocker.virt.docker.model import Usage

# psutil's counter of the host device: Nova's counter of the guest's device. Because a packet that
# the host's end receives is one that the guest sent, directions are swapped.
_NIC_FIELDS = {
    "bytes_recv": "tx_octets",
    "errin": "tx_errors",
    "dropin": "tx_drop",
    "packets_recv": "tx_packets",
    "bytes_sent": "rx_octets",
    "errout": "rx_errors",
    "dropout": "rx_drop",
    "packets_sent": "rx_packets",
}


def diagnostics(
    state: int,
    started_at: datetime | None,
    usage: Usage | None,
    nics: Sequence[tuple[str, Mapping[str, int] | None]],
    config_drive: bool,
) -> objects.Diagnostics:
    """Return the diagnostics of a server.

    ``driver`` stays unset, because Nova's list of drivers does not contain this driver.

    :param usage: None if the server does not run
    :param nics: the MAC address and the counters of each host device; None for a missing device
    """
    found = objects.Diagnostics(
        state=power_state.STATE_MAP[state],
        hypervisor=fields.HVType.DOCKER,
        hypervisor_os="linux",
        config_drive=config_drive,
    )
    if started_at is not None:
        found.uptime = max(0, int(timeutils.delta_seconds(started_at, timeutils.utcnow(True))))
    for mac, counters in nics:
        found.add_nic(mac_address=mac, **_nic_counters(counters))
    if usage is not None:
        _add_usage(found, usage)
    return found


def _nic_counters(counters: Mapping[str, int] | None) -> dict[str, Any]:
    if counters is None:
        return {}
    return {name: counters[source] for source, name in _NIC_FIELDS.items()}


def _add_usage(found: objects.Diagnostics, usage: Usage) -> None:
    for number, nanoseconds in enumerate(usage.cpu_nanoseconds_each or (usage.cpu_nanoseconds,)):
        found.add_cpu(id=number, time=nanoseconds)
    found.add_disk(
        read_bytes=usage.disk_read_bytes,
        read_requests=usage.disk_read_requests,
        write_bytes=usage.disk_write_bytes,
        write_requests=usage.disk_write_requests,
    )
    found.memory_details = objects.MemoryDiagnostics(
        maximum=usage.memory_limit_bytes // units.Mi, used=usage.memory_bytes // units.Mi
    )
