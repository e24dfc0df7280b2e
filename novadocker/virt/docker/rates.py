# SPDX-License-Identifier: Apache-2.0
"""Privileged entry points for what the engine does not set: disk and network rates.

Each checks its arguments, trusts nobody, and can be repeated.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from novadocker import privsep
from novadocker.linux import namespaces
from novadocker.linux.cgroup import DiskRates
from novadocker.privsep import arguments
from novadocker.virt.docker import cgroup, netns, traffic
from novadocker.virt.docker.model import NetworkRate

_SIZES = range(1, 1 << 60)
_RATE_FIELDS = [field.name for field in dataclasses.fields(NetworkRate)]
_DISK_FIELDS = [field.name for field in dataclasses.fields(DiskRates)]


@privsep.network_pctxt.entrypoint
def set_port_rates(
    instance_uuid: str,
    devices: Sequence[tuple[str, str]],
    inbound: Mapping[str, int] | None,
    outbound: Mapping[str, int] | None,
) -> None:
    """Set the rates of a server's wired VIFs, and see that the kernel keeps them.

    :param devices: the host end and the guest end of each VIF
    :param inbound: ``model.NetworkRate`` as a dictionary, of each VIF's traffic to the server
    :param outbound: the same for traffic from it
    :raises ValueError: an argument is not well-formed
    :raises OSError: the kernel does not keep a rate
    """
    path = netns.namespace_path(instance_uuid)
    to_server, from_server = _parse(inbound), _parse(outbound)
    pairs = [arguments.device_pair(pair) for pair in arguments.items(devices)]
    namespaces.run_in_thread(_shape, path, pairs, to_server, from_server)


@privsep.network_pctxt.entrypoint
def set_disk_rates(container_id: str, pid: int, disk: str, disk_rates: Mapping[str, int]) -> None:
    """Set the rates of a running server's disk, and see that the kernel keeps them.

    :param pid: of the container's first process
    :param disk: number of the disk as ``254:0``
    :param disk_rates: ``model.DiskRates`` as a dictionary
    :raises ValueError: an argument is not well-formed
    :raises OSError: the kernel does not keep a rate
    """
    cgroup.write_disk_rates(
        arguments.process(pid),
        arguments.container_id(container_id),
        cgroup.checked_disk(disk),
        DiskRates(**arguments.rates(_DISK_FIELDS, disk_rates)),
    )


@privsep.network_pctxt.entrypoint
def reclaim_memory(pid: int, container_id: str, size: int) -> None:
    """Make a container's memory fit into ``size`` bytes; see ``cgroup.reclaim_memory``.

    :raises ValueError: an argument is not well-formed
    """
    cgroup.reclaim_memory(
        arguments.process(pid),
        arguments.container_id(container_id),
        arguments.number(_SIZES, size),
    )


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
        namespaces.enter_namespace_at(path)
        with IPRoute() as guest:
            for _, device in pairs:
                traffic.shape(guest, device, outbound, own=True)
    except NetlinkError as error:
        # an error that the caller can know without pyroute2
        raise OSError(error.code, str(error)) from error


def _parse(rate: object) -> traffic.Shape | None:
    if rate is None:
        return None
    found = NetworkRate(**arguments.rates(_RATE_FIELDS, rate))
    if not found.average:
        raise ValueError(f"{found} is no rate")
    return traffic.shape_of(found)
