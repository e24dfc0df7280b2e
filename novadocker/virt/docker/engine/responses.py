# SPDX-License-Identifier: Apache-2.0
"""Pure: the engine's answers, JSON, to the dataclasses of ``model``.

Further fields are fine, and so are words that no engine has used so far. What lacks a field that is
needed, or has one of another type, raises ``MalformedAnswer``.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from oslo_utils import timeutils

from novadocker.virt.docker.model import (
    Container,
    ContainerDetail,
    ContainerEvent,
    EngineInfo,
    Storage,
)

_Kind = TypeVar("_Kind")


class MalformedAnswer(Exception):
    """The engine answered what can't be understood; the text says what is wrong with it."""


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """Raise MalformedAnswer where the body does not find what it looks for."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise MalformedAnswer(f"the answer makes no sense: {error!r}") from error


def engine_info(found: Mapping[str, Any], api_version: str) -> EngineInfo:
    """Return the facts of the engine and its host."""
    with understood():
        return EngineInfo(
            version=_a(str, found["ServerVersion"]),
            api_version=api_version,
            cpus=_a(int, found["NCPU"]),
            memory_bytes=_a(int, found["MemTotal"]),
            architecture=_a(str, found["Architecture"]),
            data_root=_a(str, found["DockerRootDir"]),
            storage_driver=_a(str, found["Driver"]),
            cgroup_version=_a(str, found.get("CgroupVersion", "1")),
            live_restore=_a(bool, found["LiveRestoreEnabled"]),
            runtimes={
                name: _a(str, runtime.get("path", ""))
                for name, runtime in _a(dict, found["Runtimes"]).items()
            },
            backing_filesystem=_a(
                str, dict(found["DriverStatus"] or ()).get("Backing Filesystem", "")
            ),
            warnings=tuple(_a(str, line) for line in found.get("Warnings") or ()),
            user_namespaces="name=userns" in (found.get("SecurityOptions") or ()),
        )


def container(row: Mapping[str, Any]) -> Container:
    """Return a line of the list of containers."""
    with understood():
        return Container(
            id=_a(str, row["Id"]),
            name=_a(str, row["Names"][0]).lstrip("/") if row.get("Names") else "",
            status=_a(str, row["State"]),
            labels=_texts(row.get("Labels")),
        )


def container_detail(found: Mapping[str, Any]) -> ContainerDetail:
    """Return what an inspection tells."""
    with understood():
        state, config = found["State"], found["Config"]
        pid = _a(int, state["Pid"])
        return ContainerDetail(
            id=_a(str, found["Id"]),
            name=_a(str, found["Name"]).lstrip("/"),
            status=_a(str, state["Status"]),
            labels=_texts(config.get("Labels")),
            pid=pid,
            stop_signal=_a(str, config.get("StopSignal") or "SIGTERM"),
            started_at=timeutils.parse_isotime(state["StartedAt"]) if pid else None,
            image_id=_a(str, found["Image"]),
        )


def storage(found: Mapping[str, Any]) -> Storage:
    """Return where an inspection says that a container's files are."""
    with understood():
        driver = found.get("GraphDriver") or {}
        data = driver.get("Data") or {}
        return Storage(
            driver=_a(str, driver.get("Name", "unknown")),
            upper=_a(str, data.get("UpperDir", "")),
            lowers=tuple(_a(str, data.get("LowerDir", "")).split(":")),
            volumes={
                _a(str, mount["Destination"]): _a(str, mount["Source"])
                for mount in found.get("Mounts") or ()
                if mount["Type"] == "volume"
            },
            work=_a(str, data.get("WorkDir", "")),
        )


def event(line: bytes) -> ContainerEvent:
    """Return something that happened to a container, from a line of the stream."""
    with understood():
        message = json.loads(line)
        attributes = _texts(message["Actor"]["Attributes"])
        return ContainerEvent(
            name=attributes.get("name", ""),
            action=_a(str, message["Action"]),
            time_ns=_a(int, message["timeNano"]),
            attributes=attributes,
        )


def _texts(found: object) -> dict[str, str]:
    return {_a(str, name): _a(str, value) for name, value in _a(dict, found or {}).items()}


def _a(kind: type[_Kind], value: object) -> _Kind:
    """Return a value of a type.

    :raises TypeError: it is none
    """
    # Python's bool is an int
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{value!r:.40} is no {kind.__name__}")
    return value
