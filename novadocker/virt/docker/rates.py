# SPDX-License-Identifier: Apache-2.0
"""Privileged entry points for what the engine does not set: disk and network rates.

Each checks its arguments, trusts nobody, and can be repeated.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from novadocker import privsep
from novadocker.virt.docker import cgroup, kernel, netns, traffic
from novadocker.virt.docker.model import DiskRates, NetworkRate

_HOST_DEVICE = re.compile(r"(tap|nic)[0-9a-f][0-9a-f-]{0,11}")
_GUEST_DEVICE = re.compile(r"eth[0-9]{1,3}")
_MOST = 1 << 62


@privsep.network_pctxt.entrypoint
def set_rates(
    instance_uuid: str,
    devices: Sequence[tuple[str, str]],
    inbound: Mapping[str, int] | None,
    outbound: Mapping[str, int] | None,
    container_id: str,
    pid: int,
    disk: str | None,
    disk_rates: Mapping[str, int],
) -> None:
    """Set the rates of a running server's VIFs and disk, and see that the kernel keeps them.

    :param devices: the host end and the guest end of each VIF
    :param inbound: ``model.NetworkRate`` as a dictionary, of each VIF's traffic to the server
    :param outbound: the same for traffic from it
    :param pid: of the container's first process
    :param disk: number of the disk as ``254:0``; None leaves disks alone
    :param disk_rates: ``model.DiskRates`` as a dictionary
    :raises ValueError: an argument is not well-formed
    :raises OSError: the kernel does not keep a rate
    """
    path = netns.namespace_path(instance_uuid)
    to_server, from_server = _parse(inbound), _parse(outbound)
    pairs = [
        (_checked(_HOST_DEVICE, host), _checked(_GUEST_DEVICE, guest)) for host, guest in devices
    ]
    if disk is not None:
        cgroup.write_disk_rates(int(pid), container_id, disk, DiskRates(**disk_rates))
    if pairs:
        kernel.run_in_thread(_shape, path, pairs, to_server, from_server)


@privsep.network_pctxt.entrypoint
def reclaim_memory(pid: int, container_id: str, size: int) -> None:
    """Make a container's memory fit into ``size`` bytes; see ``cgroup.reclaim_memory``."""
    cgroup.reclaim_memory(int(pid), container_id, size)


def _shape(
    path: str,
    pairs: Sequence[tuple[str, str]],
    inbound: traffic.Shape | None,
    outbound: traffic.Shape | None,
) -> None:
    try:
        with IPRoute() as host:
            for device, _ in pairs:
                traffic.shape(host, device, inbound, own=False)
        kernel.enter_namespace_at(path)
        with IPRoute() as guest:
            for _, device in pairs:
                traffic.shape(guest, device, outbound, own=True)
    except NetlinkError as error:
        # an error that the caller can know without pyroute2
        raise OSError(error.code, str(error)) from error


def _parse(rate: Mapping[str, int] | None) -> traffic.Shape | None:
    if rate is None:
        return None
    for value in rate.values():
        if type(value) is not int or not 0 <= value <= _MOST:
            raise ValueError(f"{value!r} is no rate")
    found = NetworkRate(**rate)
    if not found.average:
        raise ValueError(f"{found} is no rate")
    return traffic.shape_of(found)


def _checked(pattern: re.Pattern[str], value: Any) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{value!r} is not {pattern.pattern}")
    return value
