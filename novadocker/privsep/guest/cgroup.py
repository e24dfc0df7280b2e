# SPDX-License-Identifier: Apache-2.0
"""Privileged entry points for what the engine does not set: disk and network rates.

Each checks its arguments, trusts nobody, and can be repeated.
"""

import dataclasses
import re
from collections.abc import Mapping

from novadocker import privsep
from novadocker.linux.cgroup import THROTTLES, DiskRates, groups, read_disk_rates
from novadocker.privsep import arguments

_SIZES = range(1, 1 << 60)
_DISK_FIELDS = [field.name for field in dataclasses.fields(DiskRates)]


_DEVICE = re.compile(r"[0-9]{1,4}:[0-9]{1,8}")


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
