# SPDX-License-Identifier: Apache-2.0
"""Privileged entry points for what the engine does not set: disk and network rates.

Each checks its arguments, trusts nobody, and can be repeated.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from novadocker import privsep
from novadocker.linux import namespaces
from novadocker.linux.cgroup import THROTTLES, DiskRates, groups, read_disk_rates
from novadocker.privsep import arguments
from novadocker.virt.docker import netns, traffic
from novadocker.virt.docker.model import NetworkRate

_SIZES = range(1, 1 << 60)
_RATE_FIELDS = [field.name for field in dataclasses.fields(NetworkRate)]
_DISK_FIELDS = [field.name for field in dataclasses.fields(DiskRates)]


_DEVICE = re.compile(r"[0-9]{1,4}:[0-9]{1,8}")


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
    write_disk_rates(
        arguments.process(pid),
        arguments.container_id(container_id),
        checked_disk(disk),
        DiskRates(**arguments.rates(_DISK_FIELDS, disk_rates)),
    )


@privsep.network_pctxt.entrypoint
def reclaim_memory(pid: int, container_id: str, size: int) -> None:
    """Make a container's memory fit into ``size`` bytes; see ``_reclaim``.

    :raises ValueError: an argument is not well-formed
    """
    _reclaim(
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


def disk_rate_writes(version: int, disk: str, rates: DiskRates) -> list[tuple[str, str, str]]:
    """Return what sets disk rates: controller, file and content."""
    if version == 1:
        return [
            ("blkio", file, f"{disk} {getattr(rates, field)}")
            for field, (file, _) in THROTTLES.items()
        ]
    words = (f"{word}={getattr(rates, field) or 'max'}" for field, (_, word) in THROTTLES.items())
    return [("io", "io.max", f"{disk} {' '.join(words)}")]


def checked_disk(value: object) -> str:
    """Return the number of a disk as ``disk_of`` does; ValueError if it is none."""
    return arguments.text(_DEVICE, value)


def write_disk_rates(pid: int, container_id: str, disk: str, rates: DiskRates) -> None:
    """Set a container's disk rates and see that the kernel keeps them; right ones stay untouched.

    :raises OSError: the kernel does not take them, or the process is not the container's
    """
    found = groups(pid, container_id)
    if read_disk_rates(found, disk) == rates:
        return
    for controller, file, content in disk_rate_writes(found.version, disk, rates):
        try:
            found.write(controller, file, content)
        except KeyError as error:
            raise OSError(f"the host has no controller {controller}") from error
    if (kept := read_disk_rates(found, disk)) != rates:
        raise OSError(f"the kernel keeps {kept} instead of {rates}")


def _reclaim(pid: int, container_id: str, size: int) -> None:
    """Make a container's memory fit into ``size`` bytes, which kills nothing.

    For version 2, whose ``memory.max`` kills where version 1 would refuse. ``memory.high`` makes
    the kernel take back what it can before the call returns.

    :raises OSError: more is in use that can't be taken back
    """
    found = groups(pid, container_id)
    if found.version == 1:
        return
    found.write("memory", "memory.high", str(size))
    try:
        left = int(found.read("memory", "memory.current") or 0)
        if left > size:
            raise OSError(f"{left} bytes of memory are in use")
    finally:
        found.write("memory", "memory.high", "max")
