# SPDX-License-Identifier: Apache-2.0
"""The network namespace of an instance, and the record by which its container joins it.

The entry points of the privileged process: each checks its arguments, trusts nobody, and can be
repeated. The namespace belongs to the instance, not to a process, so that it outlives any start
and stop of the container.
"""

import ipaddress
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from oslo_concurrency import lockutils

from novadocker import privsep
from novadocker.virt.docker import kernel, wiring
from novadocker.virt.docker.nics import Nic, Route

NAMESPACES = "/run/netns"
# the runtime shim has the same path
RECORDS = Path("/run/novadocker/containers")

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
_HOST_DEVICE = re.compile(r"(tap|nic)[0-9a-f][0-9a-f-]{0,11}")
_GUEST_DEVICE = re.compile(r"eth[0-9]{1,3}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_ETC_FILE = re.compile(r"hostname|hosts|resolv\.conf")
_LARGEST_FILE = 65536
# an IPv4 datagram must fit | veth knows no more
_MTU = range(68, 65536)


def namespace_path(instance_uuid: str) -> str:
    """Return the path of an instance's network namespace.

    :raises ValueError: that is no UUID
    """
    return f"{NAMESPACES}/nova-{_checked(_UUID, instance_uuid)}"


def namespace_exists(instance_uuid: str) -> bool:
    """Say whether an instance has its network namespace; needs no privilege."""
    return kernel.is_namespace(namespace_path(instance_uuid))


@privsep.network_pctxt.entrypoint
def create_namespace(instance_uuid: str) -> None:
    """Make an instance's network namespace with its loopback up; one that exists stays."""
    _wire(instance_uuid, ())


@privsep.network_pctxt.entrypoint
def wire_nics(instance_uuid: str, nics: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Make every NIC of an instance what it must be, and its namespace if there is none.

    What is right already is left alone: a running instance loses no packet.

    :param nics: each ``nics.Nic`` as a dictionary
    :returns: the ports whose devices are new
    :raises ValueError: an argument is not well-formed
    :raises wiring.WiringFailed: a NIC is not what it must be in the end
    """
    return _wire(instance_uuid, [_parse_nic(nic) for nic in nics])


@privsep.network_pctxt.entrypoint
def silence_nics(instance_uuid: str, host_devices: Sequence[str]) -> None:
    """Take the host ends of NICs down until they are wired again; absent is fine."""
    names = [_checked(_HOST_DEVICE, name) for name in host_devices]
    with _locked(instance_uuid):
        kernel.run_in_thread(wiring.silence, names)


@privsep.network_pctxt.entrypoint
def unwire_nic(instance_uuid: str, host_device: str) -> None:
    """Delete the veth pair of a NIC; absent is fine."""
    with _locked(instance_uuid):
        kernel.run_in_thread(wiring.unwire, _checked(_HOST_DEVICE, host_device))


@privsep.network_pctxt.entrypoint
def delete_namespace(instance_uuid: str) -> None:
    """Remove an instance's network namespace and the records that name it; absent is fine.

    The veth pairs in it go with it.
    """
    path = namespace_path(instance_uuid)
    with _locked(instance_uuid):
        kernel.remove_name(path)
        for record in _records():
            with suppress(FileNotFoundError):
                if record.read_text() == f"{path}\n":
                    _release(record)


@privsep.network_pctxt.entrypoint
def bind_container(
    container_id: str, instance_uuid: str, etc_files: Mapping[str, bytes] | None = None
) -> None:
    """Record, for the runtime shim, which instance's namespace a container joins.

    The record appears as a whole or not at all.

    :param etc_files: contents of ``hostname``, ``hosts`` and ``resolv.conf``, which the shim puts
        into the container's /etc at its next start, and only then
    :raises ValueError: an argument is not well-formed
    """
    record = RECORDS / _checked(_CONTAINER_ID, container_id)
    path = namespace_path(instance_uuid)
    for folder in (RECORDS.parent, RECORDS):
        with suppress(FileExistsError):
            folder.mkdir(0o755)
    _replace(record, f"{path}\n".encode())
    if etc_files:
        folder = _files_folder(record)
        folder.mkdir(0o755, exist_ok=True)
        for name, content in etc_files.items():
            if len(content) > _LARGEST_FILE:
                raise ValueError(f"{name} has {len(content)} bytes")
            _replace(folder / _checked(_ETC_FILE, name), content)


@privsep.network_pctxt.entrypoint
def release_container(container_id: str) -> None:
    """Remove the record of a container and what goes with it; absent is fine."""
    _release(RECORDS / _checked(_CONTAINER_ID, container_id))


def _wire(instance_uuid: str, nics: Sequence[Nic]) -> tuple[str, ...]:
    path = namespace_path(instance_uuid)
    with _locked(instance_uuid):
        return kernel.run_in_thread(wiring.wire, path, nics)


def _locked(instance_uuid: str) -> Any:
    """Keep calls for one instance apart; those for others go on."""
    return lockutils.lock(f"novadocker-netns-{_checked(_UUID, instance_uuid)}")


def _replace(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    with os.fdopen(descriptor, "wb") as output:
        output.write(content)
        os.fchmod(descriptor, 0o644)
    os.rename(temporary, path)


def _release(record: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(_files_folder(record))
    record.unlink(missing_ok=True)


def _files_folder(record: Path) -> Path:
    return record.with_name(f"{record.name}.etc")


def _records() -> list[Path]:
    try:
        return [RECORDS / name for name in os.listdir(RECORDS) if _CONTAINER_ID.fullmatch(name)]
    except FileNotFoundError:
        return []


def _parse_nic(nic: Mapping[str, Any]) -> Nic:
    mtu = nic["mtu"]
    if mtu is not None and (type(mtu) is not int or mtu not in _MTU):
        raise ValueError(f"{mtu!r} is no MTU")
    return Nic(
        port_id=_checked(_UUID, nic["port_id"]),
        host_device=_checked(_HOST_DEVICE, nic["host_device"]),
        guest_device=_checked(_GUEST_DEVICE, nic["guest_device"]),
        mac=_checked(_MAC, nic["mac"]),
        mtu=mtu,
        addresses=tuple(str(ipaddress.ip_interface(address)) for address in nic["addresses"]),
        routes=tuple(_parse_route(route) for route in nic["routes"]),
    )


def _parse_route(route: Mapping[str, Any]) -> Route:
    gateway = route["gateway"]
    return Route(
        destination=str(ipaddress.ip_network(route["destination"])),
        gateway=None if gateway is None else str(ipaddress.ip_address(gateway)),
    )


def _checked(pattern: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{value!r} is not {pattern.pattern}")
    return value
