# SPDX-License-Identifier: Apache-2.0
"""Conversion of the engine's JSON responses to the dataclasses of ``model``; pure.

Unknown fields and unknown values are accepted. A response that lacks a required field, or has one
of another type, raises ``MalformedResponse``.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from oslo_utils import timeutils

from novadocker.virt.docker.model import (
    OVERLAYFS,
    Container,
    ContainerDetail,
    ContainerEvent,
    EngineInfo,
    Storage,
)

_Kind = TypeVar("_Kind")

# The list of containers has the exit status in this text only: "Exited (129) 5 minutes ago".
_ENDED = re.compile(r"Exited \(([0-9]+)\)")


class MalformedResponse(Exception):
    """The engine's response has an unexpected structure."""


@contextlib.contextmanager
def parsing() -> Iterator[None]:
    """Raise MalformedResponse if the block does not find a field or type that it expects."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise MalformedResponse(f"the response is malformed: {error!r}") from error


def engine_info(found: Mapping[str, Any], api_version: str) -> EngineInfo:
    """Return the properties of the engine and its host."""
    with parsing():
        # The engine appends details to a name, such as name=seccomp,profile=default.
        security = {option.split(",")[0] for option in found.get("SecurityOptions") or ()}
        store = dict(found["DriverStatus"] or ())
        return EngineInfo(
            version=_typed(str, found["ServerVersion"]),
            api_version=api_version,
            cpus=_typed(int, found["NCPU"]),
            memory_bytes=_typed(int, found["MemTotal"]),
            architecture=_typed(str, found["Architecture"]),
            data_root=_typed(str, found["DockerRootDir"]),
            storage_driver=_typed(str, found["Driver"]),
            cgroup_version=_typed(str, found.get("CgroupVersion", "1")),
            live_restore=_typed(bool, found["LiveRestoreEnabled"]),
            runtimes={
                name: _typed(str, runtime.get("path", ""))
                for name, runtime in _typed(dict, found["Runtimes"]).items()
            },
            backing_filesystem=_typed(str, store.get("Backing Filesystem", "")),
            warnings=tuple(_typed(str, line) for line in found.get("Warnings") or ()),
            user_namespaces="name=userns" in security,
            seccomp="name=seccomp" in security,
            containerd_store=store.get("driver-type") == "io.containerd.snapshotter.v1",
            containerd_address=_typed(str, (found.get("Containerd") or {}).get("Address", "")),
            rootless="name=rootless" in security,
            selinux="name=selinux" in security,
            apparmor="name=apparmor" in security,
        )


def container(row: Mapping[str, Any]) -> Container:
    """Return an entry of the list of containers."""
    with parsing():
        return Container(
            id=_typed(str, row["Id"]),
            name=_typed(str, row["Names"][0]).lstrip("/") if row.get("Names") else "",
            status=_typed(str, row["State"]),
            labels=_texts(row.get("Labels")),
            exit_code=int(ended[1]) if (ended := _ENDED.match(str(row.get("Status")))) else None,
        )


def container_detail(found: Mapping[str, Any]) -> ContainerDetail:
    """Return the details of a container from its inspection."""
    with parsing():
        state, config = found["State"], found["Config"]
        pid = _typed(int, state["Pid"])
        ended = state["Status"] == "exited"
        return ContainerDetail(
            id=_typed(str, found["Id"]),
            name=_typed(str, found["Name"]).lstrip("/"),
            status=_typed(str, state["Status"]),
            labels=_texts(config.get("Labels")),
            pid=pid,
            stop_signal=_typed(str, config.get("StopSignal") or "SIGTERM"),
            started_at=timeutils.parse_isotime(state["StartedAt"]) if pid else None,
            image_id=_typed(str, found["Image"]),
            exit_code=_typed(int, state["ExitCode"]) if ended else None,
            finished_at=timeutils.parse_isotime(state["FinishedAt"]) if ended else None,
            last_start=_typed(str, state["StartedAt"]),
        )


def storage(found: Mapping[str, Any]) -> Storage:
    """Return the directories of a container's files from its inspection."""
    with parsing():
        driver = found.get("GraphDriver") or {}
        data = driver.get("Data") or {}
        return Storage(
            driver=_driver_name(found, _typed(str, driver.get("Name", "unknown"))),
            upper=_typed(str, data.get("UpperDir", "")),
            lowers=tuple(_typed(str, data.get("LowerDir", "")).split(":")),
            volumes={
                _typed(str, mount["Destination"]): _typed(str, mount["Source"])
                for mount in found.get("Mounts") or ()
                if mount["Type"] == "volume"
            },
            work=_typed(str, data.get("WorkDir", "")),
        )


def image_layers(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the directories of an image's layers; none with drivers other than overlay2."""
    with parsing():
        driver = found.get("GraphDriver") or {}
        data = (driver.get("Data") or {}) if driver.get("Name") == "overlay2" else {}
        upper, lowers = (_typed(str, data.get(key, "")) for key in ("UpperDir", "LowerDir"))
        return tuple(path for path in (upper, *lowers.split(":")) if path)


def _driver_name(found: Mapping[str, Any], name: str) -> str:
    """Return the name of a container's storage driver.

    With containerd's image store, Engine 29 (API 1.52) has ``Storage`` in place of ``GraphDriver``,
    and older engines have the snapshotter as the driver, without data.
    """
    root = (found.get("Storage") or {}).get("RootFS") or {}
    snapshotter = _typed(str, (root.get("Snapshot") or {}).get("Name", ""))
    if not snapshotter and name == OVERLAYFS:
        snapshotter = name
    return f"containerd's {snapshotter}" if snapshotter else name


def event(line: bytes) -> ContainerEvent:
    """Return an event of a container from a line of the stream of events."""
    with parsing():
        message = json.loads(line)
        attributes = _texts(message["Actor"]["Attributes"])
        return ContainerEvent(
            name=attributes.get("name", ""),
            action=_typed(str, message["Action"]),
            time_ns=_typed(int, message["timeNano"]),
            attributes=attributes,
        )


def _texts(found: object) -> dict[str, str]:
    return {
        _typed(str, name): _typed(str, value) for name, value in _typed(dict, found or {}).items()
    }


def unpacked_bytes(found: Mapping[str, Any]) -> int:
    """Return the size of an image's unpacked layers; 0 if the engine does not tell it.

    With containerd's image store, the size of the image includes the layers as the registry has
    them. Such an engine tells the size of the unpacked ones alone from Engine 28 on.
    """
    with parsing():
        # With this store, Engine 29 leaves the driver out.
        if (found.get("GraphDriver") or {}).get("Name") not in (None, OVERLAYFS):
            return _typed(int, found["Size"])
        images = (manifest.get("ImageData") or {} for manifest in found.get("Manifests") or ())
        return sum(_typed(int, image["Size"]["Unpacked"]) for image in images if image)


def _typed(kind: type[_Kind], value: object) -> _Kind:
    """Return ``value`` if it has the type; a bool is not accepted as an int.

    :raises TypeError: the value has another type
    """
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{value!r:.40} is not of type {kind.__name__}")
    return value
