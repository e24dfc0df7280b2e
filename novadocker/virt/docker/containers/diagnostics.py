# SPDX-License-Identifier: Apache-2.0
"""The engine's counters as Nova's diagnostics; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from nova import objects
from nova.compute import power_state
from nova.objects import fields
from oslo_utils import timeutils, units

from novadocker.virt.docker.model import Usage

# by the name psutil gives a host device's counter: Nova's for the guest, whose ends are swapped
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

    Nova's list of drivers has no word for this one, so ``driver`` stays unset.

    :param usage: None while nothing runs
    :param nics: MAC address and the host device's counters, None where the device is away
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
