# SPDX-License-Identifier: Apache-2.0
"""Privileged functions for a container's control group: disk rates, and reclaiming memory.

The engine sets no disk rates of a running container. Each function checks its arguments and is
idempotent.
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
    """Set the rates of a running instance's disk, and check that the kernel applied them.

    :param pid: process id of the container's first process
    :param disk: device number of the disk, such as ``254:0``
    :param disk_rates: ``linux.cgroup.DiskRates`` as a dictionary
    :raises ValueError: an argument is malformed
    :raises OSError: the kernel did not apply a rate
    """
    write_disk_rates(
        arguments.process(pid),
        arguments.container_id(container_id),
        checked_disk(disk),
        DiskRates(**arguments.rates(_DISK_FIELDS, disk_rates)),
    )


@privsep.network_pctxt.entrypoint
def reclaim_memory(pid: int, container_id: str, size: int) -> None:
    """Reclaim memory of a container until it uses at most ``size`` bytes; see ``_reclaim``.

    :param pid: process id of the container's first process
    :raises ValueError: an argument is malformed
    :raises OSError: the kernel can't reclaim enough
    """
    _reclaim(
        arguments.process(pid),
        arguments.container_id(container_id),
        arguments.number(_SIZES, size),
    )


def disk_rate_writes(version: int, disk: str, rates: DiskRates) -> list[tuple[str, str, str]]:
    """Return the writes that set disk rates, each as controller, file and content."""
    if version == 1:
        return [
            ("blkio", file, f"{disk} {getattr(rates, field)}")
            for field, (file, _) in THROTTLES.items()
        ]
    limits = (f"{key}={getattr(rates, field) or 'max'}" for field, (_, key) in THROTTLES.items())
    return [("io", "io.max", f"{disk} {' '.join(limits)}")]


def checked_disk(value: object) -> str:
    """Return the device number of a disk, such as ``254:0``; ValueError if it is malformed."""
    return arguments.text(_DEVICE, value)


def write_disk_rates(pid: int, container_id: str, disk: str, rates: DiskRates) -> None:
    """Set a container's disk rates unless they are set, and check that the kernel applied them.

    :raises OSError: the kernel refused or did not apply a rate, or the process does not belong to
        the container
    """
    found = groups(pid, container_id)
    if read_disk_rates(found, disk) == rates:
        return
    for controller, file, content in disk_rate_writes(found.version, disk, rates):
        try:
            found.write(controller, file, content)
        except KeyError as error:
            raise OSError(f"this host has no cgroup controller {controller}") from error
    if (kept := read_disk_rates(found, disk)) != rates:
        raise OSError(f"the kernel applied {kept} instead of {rates}")


def _reclaim(pid: int, container_id: str, size: int) -> None:
    """Reclaim memory of a container until it uses at most ``size`` bytes. Kills no process.

    On control groups version 2, a lower ``memory.max`` kills processes, where version 1 refuses the
    write. A write to ``memory.high`` returns after the kernel has reclaimed what it can. Does
    nothing on version 1.

    :raises OSError: more than ``size`` bytes are in use and can't be reclaimed
    """
    found = groups(pid, container_id)
    if found.version == 1:
        return
    found.write("memory", "memory.high", str(size))
    try:
        left = int(found.read("memory", "memory.current") or 0)
        if left > size:
            raise OSError(f"{left} bytes of memory are in use after reclaiming")
    finally:
        found.write("memory", "memory.high", "max")
