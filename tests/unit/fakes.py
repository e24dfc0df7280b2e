# SPDX-License-Identifier: Apache-2.0
"""Small stand-ins for the modules below the driver."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from novadocker import exception
from novadocker.virt.docker.model import (
    Container,
    ContainerDetail,
    ContainerSpec,
    EngineImage,
    EngineInfo,
    Usage,
)

INFO = EngineInfo(
    version="20.10.24+dfsg1",
    api_version="1.41",
    cpus=8,
    memory_bytes=16 << 30,
    architecture="x86_64",
    data_root="/",
    storage_driver="overlay2",
    cgroup_version="1",
    live_restore=True,
    runtimes={"runc": "runc", "novadocker": "/usr/bin/novadocker-runtime"},
)
IMAGE = EngineImage(id="sha256:" + "1" * 64, command=("init",))
USAGE = Usage(
    cpu_nanoseconds=30,
    cpu_nanoseconds_each=(10, 20),
    memory_bytes=5 << 20,
    memory_limit_bytes=256 << 20,
    disk_read_bytes=1,
    disk_read_requests=2,
    disk_write_bytes=3,
    disk_write_requests=4,
)


@dataclass
class FakeEngine:
    """An engine in memory; ``calls`` lists the requests that change something, in order.

    ``stubborn`` names signals that do not end a process, ``exit_code`` ends each at its start.
    """

    info_: EngineInfo = INFO
    away: bool = False
    exit_code: int | None = None
    stubborn: frozenset[str] = frozenset()
    calls: list[tuple[str, ...]] = field(default_factory=list)
    containers: dict[str, ContainerDetail] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    lists: int = 0

    def _reach(self, *call: str) -> None:
        if self.away:
            raise exception.EngineUnavailable(url="fake", reason="away")
        if call:
            self.calls.append(call)

    def _get(self, name: str) -> ContainerDetail:
        for container in self.containers.values():
            if name in (container.id, container.name):
                return container
        raise exception.ContainerNotFound(operation="a look", reason=f"no {name}")

    def _set(self, name: str, status: str) -> None:
        found = self._get(name)
        pid = os.getpid() if status in ("running", "paused") else 0
        self.containers[found.id] = replace(found, status=status, pid=pid)

    def info(self) -> EngineInfo:
        self._reach()
        return self.info_

    def list_containers(self, label: str) -> list[Container]:
        self._reach()
        self.lists += 1
        key, _, value = label.partition("=")
        return [
            Container(c.id, c.name, c.status, c.labels)
            for c in self.containers.values()
            if c.labels.get(key) == value
        ]

    def inspect_container(self, container: str) -> ContainerDetail:
        self._reach()
        return self._get(container)

    def create_container(self, spec: ContainerSpec) -> str:
        self._reach("create", spec.name)
        if any(c.name == spec.name for c in self.containers.values()):
            raise exception.EngineError(operation="the creation", reason="name in use")
        self.add(spec.name, spec.labels)
        return next(c.id for c in self.containers.values() if c.name == spec.name)

    def add(self, name: str, labels: Mapping[str, str], status: str = "created") -> None:
        self.containers[f"id-{name}"] = ContainerDetail(
            id=f"id-{name}",
            name=name,
            status=status,
            labels=labels,
            pid=0,
            stop_signal="SIGTERM",
            started_at=None,
        )

    def start_container(self, container: str) -> None:
        self._reach("start", container)
        self._set(container, "running" if self.exit_code is None else "exited")

    def signal_container(self, container: str, signal: str) -> None:
        self._reach("signal", container, signal)
        if self._get(container).status != "running":
            raise exception.EngineError(operation="the signal", reason="not running")
        if signal not in self.stubborn:
            self._set(container, "exited")

    def wait_container(self, container: str, timeout: float) -> int | None:
        self._reach()
        if self._get(container).status == "running":
            return None
        return self.exit_code or 0

    def pause_container(self, container: str) -> None:
        self._reach("pause", container)
        self._set(container, "paused")

    def unpause_container(self, container: str) -> None:
        self._reach("unpause", container)
        self._set(container, "running")

    def remove_container(self, container: str) -> None:
        self._reach("remove", container)
        with contextlib.suppress(exception.ContainerNotFound):
            del self.containers[self._get(container).id]

    def put_files(self, container: str, files: Mapping[str, bytes]) -> None:
        self._reach("files", container)
        self.files = dict(files)

    def read_console(self, container: str) -> bytes:
        self._reach()
        return b"one\r\ntwo\r\nthree\r\n"

    def read_usage(self, container: str) -> Usage:
        self._reach()
        return USAGE


@dataclass
class FakeNetwork:
    """Stands for ``vifs`` and ``netns``; ``wired`` and ``bound`` are what the kernel would show."""

    wired: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    bound: dict[str, str] = field(default_factory=dict)
    etc_files: dict[str, bytes] = field(default_factory=dict)
    failure: Exception | None = None
    unplug_failure: Exception | None = None

    def initialize(self) -> None:
        pass

    def check_supported(self, network_info: object) -> None:
        pass

    def plug_vifs(self, instance: object, network_info: object) -> None:
        self.wired.add(instance.uuid)  # type: ignore[attr-defined]
        self.silent.discard(instance.uuid)  # type: ignore[attr-defined]
        if self.failure:
            raise self.failure

    def silence_vifs(self, instance: object, network_info: object) -> None:
        self.silent.add(instance.uuid)  # type: ignore[attr-defined]

    def unplug_vifs(self, instance: object, network_info: object) -> None:
        if self.unplug_failure:
            raise self.unplug_failure

    def bind_container(
        self, container_id: str, instance_uuid: str, etc_files: Mapping[str, bytes] | None = None
    ) -> None:
        self.bound[container_id] = instance_uuid
        self.etc_files = dict(etc_files or {})

    def delete_namespace(self, instance_uuid: str) -> None:
        self.wired.discard(instance_uuid)
        self.bound = {key: uuid for key, uuid in self.bound.items() if uuid != instance_uuid}


class FakeImages:
    """Stands for ``images.ImageStore``."""

    def __init__(self, *_args: object) -> None:
        pass

    def ensure(self, context: object, image_meta: object) -> EngineImage:
        return IMAGE


class FakeVirtAPI:
    """Nova's virtapi with events that come, fail or stay away.

    :ivar awaited: the events of the last wait
    """

    def __init__(self, outcome: str = "completed") -> None:
        self.outcome = outcome
        self.awaited: list[tuple[str, str]] = []

    @contextlib.contextmanager
    def wait_for_instance_event(
        self, instance: object, events: list[tuple[str, str]], timeout: int, on_failure: object
    ) -> Iterator[None]:
        self.awaited = events
        yield
        if events and self.outcome == "failed":
            on_failure(events[0][0], instance)  # type: ignore[operator]
        if events and self.outcome == "late":
            from novadocker.virt.docker import plugging

            raise plugging._event_timeout()
