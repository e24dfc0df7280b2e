# SPDX-License-Identifier: Apache-2.0
"""Small fakes of what is below the driver; mypy compares them with the Protocols."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

import pytest
from nova import conf, objects

from novadocker import exception
from novadocker.linux.namespaces import IdMaps
from novadocker.linux.pipes import Write
from novadocker.privsep.guest import root_volumes
from novadocker.virt.docker.containers.servers import ServerList
from novadocker.virt.docker.guest import config_drive
from novadocker.virt.docker.guest.console import Opener
from novadocker.virt.docker.host import resources
from novadocker.virt.docker.host.topology import Cell, CpuSets
from novadocker.virt.docker.host.user_namespaces import UserNamespaces
from novadocker.virt.docker.images.archive import ArchivedImage
from novadocker.virt.docker.images.owners import Owners
from novadocker.virt.docker.migration import nova_records
from novadocker.virt.docker.migration.disk_info import Move
from novadocker.virt.docker.model import (
    Container,
    ContainerDetail,
    ContainerEvent,
    ContainerSpec,
    EngineImage,
    EngineInfo,
    Limits,
    Mount,
    Storage,
    Terminal,
    Usage,
)
from novadocker.virt.docker.operations import protocols
from novadocker.virt.docker.operations.collaborators import (
    Collaborators,
    DeviceMetadata,
    ReadInstance,
)
from novadocker.virt.docker.volumes.root import VolumeImage
from novadocker.virt.docker.volumes.volume import Volume

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
    seccomp=True,
)
# Two NUMA nodes with four cores each, without hyper-threads.
CELLS = tuple(
    Cell(
        id=number,
        cores=frozenset(frozenset([cpu]) for cpu in range(4 * number, 4 * number + 4)),
        sockets=frozenset([number]),
        memory_kb=8 << 20,
    )
    for number in range(2)
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


def _pid(status: str) -> int:
    """Return the process id of a container's first process."""
    return os.getpid() if status in ("running", "paused") else 0


@dataclass
class FakeEngine:
    """An engine in memory; ``calls`` lists the requests that change its state, in order.

    ``stubborn`` names signals that do not end a process, ``exit_code`` ends each process at its
    start. ``cuts_exports`` leaves out the end of the archives of containers.
    """

    info_: EngineInfo = INFO
    away: bool = False
    cuts_exports: bool = False
    exit_code: int | None = None
    stubborn: frozenset[str] = frozenset()
    calls: list[tuple[str, ...]] = field(default_factory=list)
    containers: dict[str, ContainerDetail] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    specs: dict[str, ContainerSpec] = field(default_factory=dict)
    lists: int = 0
    storage_driver: str = "overlay2"
    lowers: tuple[str, ...] = ("/lower/2", "/lower/1")
    events: queue.SimpleQueue[ContainerEvent | exception.EngineError | None] = field(
        default_factory=queue.SimpleQueue
    )
    watched_since: list[int] = field(default_factory=list)

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
        self.containers[found.id] = replace(found, status=status, pid=_pid(status))

    def info(self) -> EngineInfo:
        self._reach()
        return self.info_

    def claim(self, info: EngineInfo) -> None:
        """Do nothing, because many drivers share one process and the data root of ``INFO``."""

    def release(self) -> None:
        pass

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        yield

    def list_containers(self, label: str) -> list[Container]:
        self._reach()
        self.lists += 1
        key, _, value = label.partition("=")
        return [
            Container(c.id, c.name, c.status, c.labels, c.exit_code)
            for c in self.containers.values()
            if c.labels.get(key) == value
        ]

    def watch_events(
        self, label: str, actions: Iterable[str], since_ns: int, quiet: float
    ) -> Iterator[ContainerEvent]:
        """Yield the events that a test puts into ``events``; None there is a lost connection."""
        self.watched_since.append(since_ns)
        with contextlib.suppress(queue.Empty):
            while (event := self.events.get(timeout=quiet)) is not None:
                if isinstance(event, exception.EngineError):
                    raise event
                yield event
            raise exception.EngineUnavailable(url="fake", reason="lost")

    def inspect_container(self, container: str) -> ContainerDetail:
        self._reach()
        return self._get(container)

    def save_image(self, name: str) -> Iterator[bytes]:
        self._reach()
        yield b"archive"

    def inspect_image(self, name: str) -> EngineImage:
        self._reach()
        return IMAGE

    def inspect_storage(self, container: str) -> Storage:
        self._reach()
        return Storage(
            self.storage_driver, f"/upper/{container}", self.lowers, {"/data": "/volumes/1"}, "/w"
        )

    def create_container(self, spec: ContainerSpec) -> str:
        self._reach("create", spec.name)
        self.specs[spec.name] = spec
        if any(c.name == spec.name for c in self.containers.values()):
            raise exception.EngineError(operation="the creation", reason="name in use")
        self.add(spec.name, spec.labels)
        return next(c.id for c in self.containers.values() if c.name == spec.name)

    def add(self, name: str, labels: Mapping[str, str], status: str = "created") -> None:
        # A name can be used again, an id cannot.
        container_id = f"id-{name}" if f"id-{name}" not in self.containers else f"id-{name}-2"
        self.containers[container_id] = ContainerDetail(
            id=container_id,
            name=name,
            status=status,
            labels=labels,
            pid=_pid(status),
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

    def open_terminal(self, container: str, command: Iterable[str]) -> Terminal:
        """Run a command that ends at once and ends the container, unless that is ``quiet``."""
        command = tuple(command)
        self._reach("terminal", container, *command)
        if command[0] in self.stubborn:
            raise exception.EngineError(operation="the terminal", reason="no such program")
        if "quiet" not in self.stubborn:
            self._set(container, "exited")
        ours, theirs = socket.socketpair()
        theirs.close()
        return Terminal(ours, b"", "/exec/1")

    def wait_container(self, container: str, timeout: float) -> int | None:
        self._reach()
        if self._get(container).status in ("running", "paused"):
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

    def remove_unused_overlays(self) -> None:
        self._reach()

    def rename_container(self, container: str, name: str) -> None:
        self._reach("rename", container, name)
        found = self._get(container)
        if any(c.name == name for c in self.containers.values()):
            raise exception.EngineError(operation="a new name", reason="name in use")
        self.containers[found.id] = replace(found, name=name)

    def put_files(self, container: str, files: Mapping[str, bytes]) -> None:
        self._reach("files", container)
        self.files.update(files)

    def read_file(self, container: str, path: str) -> bytes | None:
        self._reach()
        return self.files.get(path)

    def read_console(self, container: str, most: int) -> bytes:
        self._reach()
        return b"one\r\ntwo\r\nthree\r\n"[-most:]

    def export_container(self, container: str) -> Iterator[bytes]:
        self._reach()
        yield f"the files of {container}".encode()
        yield b"" if self.cuts_exports else bytes(1024)

    def read_usage(self, container: str) -> Usage:
        self._reach()
        return USAGE


@dataclass
class FakeNetwork:
    """A fake Network, Namespaces and Runtime; ``wired`` and ``bound`` are the kernel's state."""

    wired: set[str] = field(default_factory=set)
    ports: list[str] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)
    announced: list[str] = field(default_factory=list)
    completed: list[str] = field(default_factory=list)
    owned: dict[str, tuple[object, object]] = field(default_factory=dict)
    own_ids: dict[str, range] = field(default_factory=dict)
    bound: dict[str, str] = field(default_factory=dict)
    etc_files: dict[str, bytes] = field(default_factory=dict)
    login: Mapping[str, object] | None = None
    failure: Exception | None = None
    unplug_failure: Exception | None = None

    def initialize(self) -> None:
        pass

    def check_supported(self, network_info: Any) -> None:
        pass

    def find_vifs(self, instance_uuid: str) -> Any:
        return [{"id": port} for port in self.ports]

    def create_owned_namespace(
        self, instance_uuid: str, users: Sequence[object], groups: Sequence[object]
    ) -> None:
        assert instance_uuid not in self.wired
        self.owned[instance_uuid] = (users, groups)

    def create_own_namespace(self, instance_uuid: str, first_id: int, id_count: int) -> None:
        self.own_ids[instance_uuid] = range(first_id, first_id + id_count)

    def leave_own_namespace(self, instance_uuid: str) -> None:
        del self.own_ids[instance_uuid]

    def has_own_ids(self, instance_uuid: str) -> bool:
        return instance_uuid in self.own_ids

    def plug_vifs(self, instance: Any, network_info: Any, keep_own: bool = False) -> None:
        self.wired.add(instance.uuid)
        self.kept_own = keep_own
        self.ports = [vif["id"] for vif in network_info]
        self.silent.discard(instance.uuid)
        if self.failure:
            raise self.failure

    @contextlib.contextmanager
    def plugged_vifs(
        self, instance: Any, network_info: Any, *, prepare: Callable[[], None]
    ) -> Iterator[None]:
        # The thread of the real one may be as late.
        try:
            yield
        finally:
            prepare()
            self.plug_vifs(instance, network_info)

    def silence_vifs(self, instance: Any, network_info: Any) -> None:
        self.silent.add(instance.uuid)

    def complete_routes(self, instance: Any, network_info: Any) -> None:
        assert instance.uuid in self.wired
        self.completed.append(instance.uuid)

    def replug_vifs(self, instance: Any, network_info: Any) -> None:
        pass

    def announce_vifs(self, instance: Any, network_info: Any) -> None:
        assert instance.uuid not in self.silent
        self.announced.append(instance.uuid)

    def unplug_vifs(self, instance: Any, network_info: Any) -> None:
        if self.unplug_failure:
            raise self.unplug_failure
        gone = [vif["id"] for vif in network_info]
        self.ports = [port for port in self.ports if port not in gone]

    def bind_container(
        self,
        container_id: str,
        instance_uuid: str,
        etc_files: Mapping[str, bytes] | None = None,
        login: Mapping[str, object] | None = None,
    ) -> None:
        # Whether it gets ids of its own is known only now.
        assert instance_uuid in self.wired
        self.bound[container_id] = instance_uuid
        self.login = login
        self.etc_files = dict(etc_files or {})

    def release_container(self, container_id: str) -> None:
        self.bound.pop(container_id, None)

    def delete_namespace(self, instance_uuid: str) -> None:
        self.wired.discard(instance_uuid)
        self.bound = {key: uuid for key, uuid in self.bound.items() if uuid != instance_uuid}


@dataclass
class FakeNeutron:
    """A fake Neutron.

    :ivar ports: Neutron's ports of each instance of this host, by instance UUID
    :ivar active: the ids of the ports that are up
    """

    ports: dict[str, Any] = field(default_factory=dict)
    active: set[str] = field(default_factory=set)
    failure: Exception | None = None

    def bound_ports(self, host: str, /) -> dict[str, set[str]]:
        if self.failure:
            raise self.failure
        return {uuid: {vif["id"] for vif in ports} for uuid, ports in self.ports.items()}

    def active_ports(self, instance: Any, host: str, /) -> set[str]:
        return self.active

    def refresh_ports(self, context: Any, instance: Any, /) -> Any:
        instance.info_cache.network_info = self.ports[instance.uuid]
        return self.ports[instance.uuid]


@dataclass
class FakeDrives:
    """A fake Drives; ``written`` has the files of each instance's config drive.

    :ivar content: the files and the image of a new config drive; None to build them as the driver
    :ivar built: the arguments of each build
    """

    written: dict[str, dict[str, bytes]] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict)
    attached: set[str] = field(default_factory=set)
    content: tuple[dict[str, bytes], bytes] | None = None
    built: list[tuple[object, ...]] = field(default_factory=list)

    def build(
        self, instance: Any, network_info: Any, injected_files: Any, admin_password: str | None
    ) -> tuple[Mapping[str, bytes], bytes]:
        arguments = (instance, network_info, injected_files, admin_password)
        self.built.append(arguments)
        return config_drive.build(*arguments) if self.content is None else self.content

    def folder(self, host: str, instance_uuid: str) -> str:
        return f"/drives/{host}/{instance_uuid}"

    def files_folder(self, host: str, instance_uuid: str) -> str:
        return f"/drives/{host}/{instance_uuid}"

    def device_link(self, instance_uuid: str) -> str:
        return f"/links/{instance_uuid}"

    def list_drives(self, host: str) -> list[str]:
        return list(self.written)

    def write_drive(
        self,
        host: str,
        instance_uuid: str,
        files: Mapping[str, bytes],
        owner: tuple[int, int],
        image: bytes,
    ) -> None:
        self.written[instance_uuid] = dict(files)
        self.images[instance_uuid] = image

    def attach_device(self, host: str, instance_uuid: str) -> None:
        assert self.images[instance_uuid]
        self.attached.add(instance_uuid)

    def detach_device(self, host: str, instance_uuid: str) -> None:
        self.attached.discard(instance_uuid)

    def delete_drive(self, host: str, instance_uuid: str) -> None:
        self.written.pop(instance_uuid, None)


@dataclass
class FakeCheckpoints:
    """A fake Checkpoints; ``saved`` has the run of each instance whose processes are saved.

    :ivar impossible: why CRIU can't work
    :ivar failure: an exception of each dump
    :ivar used: the instances with an interrupted restore
    :ivar frozen: the run of each instance whose memory is written and whose processes live
    """

    impossible: str = ""
    failure: Exception | None = None
    saved: dict[str, str] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)

    def exists(self, host: str, instance_uuid: str) -> bool:
        return instance_uuid in {*self.saved, *self.frozen, *self.used}

    def list_instances(self, host: str) -> list[str]:
        return [*self.saved, *self.frozen, *self.used]

    def why_impossible(self, program: str) -> str:
        return self.impossible

    def dump(
        self,
        host: str,
        instance_uuid: str,
        container_id: str,
        pid: int,
        started_at: str,
        program: str,
    ) -> None:
        self.calls.append("dump")
        if self.failure is not None:
            raise self.failure
        self.frozen[instance_uuid] = started_at

    def end_processes(self, host: str, instance_uuid: str, container_id: str) -> bool:
        self.calls.append("end")
        if instance_uuid in self.frozen:
            self.saved[instance_uuid] = self.frozen.pop(instance_uuid)
        return instance_uuid in self.saved

    def has_ended_processes(
        self, host: str, instance_uuid: str, container_id: str, started_at: str
    ) -> bool:
        return self.saved.get(instance_uuid) == started_at

    def restore_next(
        self, host: str, instance_uuid: str, container_id: str, started_at: str, program: str
    ) -> bool:
        if instance_uuid in self.used:
            raise OSError(errno.EBUSY, "interrupted")
        self.calls.append("restore")
        return self.saved.get(instance_uuid) == started_at

    def discard(self, host: str, instance_uuid: str) -> None:
        self.calls.append("discard")
        for kept in (self.saved, self.frozen):
            kept.pop(instance_uuid, None)
        self.used.discard(instance_uuid)


@dataclass
class FakeVolumeConnector:
    """A fake VolumeConnector; ``calls`` lists its calls with the id of the volume.

    :ivar failing: the ids of volumes that cannot be connected
    :ivar stuck: the ids of volumes that cannot be disconnected
    :ivar size: the size of each volume in bytes
    """

    calls: list[tuple[str, str]] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    stuck: set[str] = field(default_factory=set)
    size: int = 1 << 30

    def connector_properties(self, host: str) -> dict[str, Any]:
        ip = conf.CONF.my_block_storage_ip
        return {"host": host, "ip": ip, "initiator": "iqn.2010-10.org:host"}

    def connect(self, volume: Volume) -> Mapping[str, Any]:
        self.calls.append(("connect", volume.id))
        if volume.id in self.failing:
            raise exception.VolumeFailed(volume_id=volume.id, reason="no path to it")
        return {"path": f"/dev/disk/by-path/{volume.id}"}

    def disconnect(self, volume: Volume) -> None:
        self.calls.append(("disconnect", volume.id))
        if volume.id in self.stuck:
            raise exception.VolumeFailed(volume_id=volume.id, reason="it is busy")

    def extend(self, volume: Volume) -> int:
        return self.size


@dataclass
class FakeVolumeDevices:
    """A fake VolumeDevices.

    :ivar held: the devices of each instance by the ids of the volumes
    :ivar given: container and volume of each device in a running container
    :ivar users: what has a volume open, by its id
    """

    held: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    given: set[tuple[str, str]] = field(default_factory=set)
    users: dict[str, str] = field(default_factory=dict)

    def holds(self, instance_uuid: str, volume_id: str) -> bool:
        return volume_id in self.held.get(instance_uuid, {})

    def hold(self, instance_uuid: str, device: dict[str, Any]) -> None:
        for uuid, devices in self.held.items():
            other = devices.get(device["volume_id"])
            if uuid != instance_uuid and other and not (other["shared"] and device["shared"]):
                raise OSError(errno.EBUSY, "another instance of this host has the volume")
        self.held.setdefault(instance_uuid, {})[device["volume_id"]] = device

    def release(self, instance_uuid: str, volume_id: str) -> bool:
        self.held.get(instance_uuid, {}).pop(volume_id, None)
        return not any(volume_id in devices for devices in self.held.values())

    def forget(self, instance_uuid: str) -> None:
        self.held.pop(instance_uuid, None)

    def give(self, instance_uuid: str, volume_id: str, container_id: str, pid: int) -> None:
        assert volume_id in self.held[instance_uuid]
        self.given.add((container_id, volume_id))

    def take(self, instance_uuid: str, volume_id: str, container_id: str, pid: int) -> str:
        if volume_id in self.users:
            return self.users[volume_id]
        self.given.discard((container_id, volume_id))
        return ""


@dataclass
class FakeRootVolumes:
    """A fake RootVolumes.

    :ivar devices: the fake in which the instances' volumes are recorded
    :ivar content: what is on each volume
    :ivar filled: the archive that each instance's volume was filled with
    :ivar prepared: the instances whose volumes were checked, in order
    :ivar examined: the image's id, checksum and length of each call of ``examine``
    """

    devices: FakeVolumeDevices
    content: str = root_volumes.BLANK
    size: int = 10 << 30
    filled: dict[str, bytes] = field(default_factory=dict)
    prepared: list[str] = field(default_factory=list)
    examined: list[tuple[str | None, str, int]] = field(default_factory=list)
    failure: OSError | None = None

    def boots_from_volume(self, instance_uuid: str) -> bool:
        held = self.devices.held.get(instance_uuid, {})
        return any(device.get("root") for device in held.values())

    def examine(
        self, instance_uuid: str, image_id: str | None, checksum: str, length: int
    ) -> tuple[str, int]:
        assert self.boots_from_volume(instance_uuid)
        self.examined.append((image_id, checksum, length))
        return self.content, self.size

    def fill(self, instance_uuid: str, image_id: str, pipe: tuple[int, int]) -> None:
        assert self.boots_from_volume(instance_uuid)
        self.content = root_volumes.UNFINISHED
        with open(f"/proc/{pipe[0]}/fd/{pipe[1]}", "rb") as source:
            self.filled[instance_uuid] = source.read()
        if self.failure:
            raise self.failure

    def complete(self, instance_uuid: str, image_id: str) -> None:
        assert self.content == root_volumes.UNFINISHED
        self.content = root_volumes.FILLED

    def prepare(self, instance_uuid: str) -> None:
        if self.failure:
            raise self.failure
        self.prepared.append(instance_uuid)


@dataclass
class FakeGuestFiles:
    """A fake GuestFiles; ``passwords`` has the users whose passwords were set.

    ``files`` are those of the fake engine.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    failure: OSError | None = None
    passwords: list[str] = field(default_factory=list)
    accounts: bool = True

    def set_password(
        self, container_id: str, pid: int, user: str, password_hash: str, day: int
    ) -> bool:
        assert pid
        assert password_hash.startswith("$6$")
        if self.accounts:
            self.passwords.append(user)
        return self.accounts

    def read_etc_file(self, container_id: str, pid: int, name: str) -> bytes | None:
        assert pid
        return self.files.get(f"/etc/{name}")

    def put_etc_file(self, container_id: str, pid: int, name: str, content: bytes) -> None:
        assert pid
        if self.failure:
            raise self.failure
        self.files[f"/etc/{name}"] = content


@dataclass
class FakeTransfer:
    """A fake Transfer and Session; ``steps`` lists the calls that change either host's state.

    ``broken`` names the step that fails.
    """

    steps: list[str] = field(default_factory=list)
    broken: str = ""

    @contextlib.contextmanager
    def session(
        self,
        command: object,
        host: str,
        transport: object,
        instance_uuid: str,
        image_id: str,
        storage: Storage,
        drive: str,
    ) -> Iterator[tuple[FakeTransfer, Move]]:
        self._step(f"session {host}")
        yield self, Move("0" * 32, image_id, sorted(storage.volumes), bool(drive))

    def send_ahead(self) -> None:
        self._step("send ahead")

    def send(self, live: bool) -> float:
        assert not live
        self._step("send")
        return 0.0

    def commit(self) -> None:
        self._step("commit")

    def adopt_drive(self, data_root: str, uuid: str, move: object, folder: str) -> None:
        self._step("adopt drive")

    def adopt(
        self, data_root: str, uuid: str, move: object, storage: object, resumed: bool
    ) -> None:
        self._step("adopt again" if resumed else "adopt")

    def discard(self, data_root: str, uuid: str) -> None:
        self._step("discard")

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if name == self.broken:
            raise exception.ResizeRefused(reason=f"{name} is broken")


class FakeTransport:
    """A fake transport, because FakeTransfer sends nothing."""

    def send_image(self, talk: object, image_id: str) -> None:
        raise NotImplementedError

    def send_stream(self, talk: object, write: Write) -> int:
        raise NotImplementedError

    def clear(self) -> None:
        """Do nothing."""


def no_tags(_context: object, _instance: object, _network_info: object) -> Any:
    """Return the device metadata of a tenant without tags."""
    return objects.InstanceDeviceMetadata(devices=[])


class FakeBackground:
    """A fake of an object that works in its own thread."""

    def start(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


class FakeServiceStatus:
    """A fake of ``host.service_status.ServiceStatus`` that keeps the reports."""

    def __init__(self) -> None:
        self.reports: list[str | None] = []

    def start(self, host: str) -> None:
        pass

    def stop(self) -> None:
        pass

    def report(self, problem: str | None) -> None:
        self.reports.append(problem)


class FakeLxcfs(FakeBackground):
    """A fake Lxcfs on a host without lxcfs."""

    def look(self) -> float:
        return 0.0

    def mounts(self, instance_uuid: str, asked: float) -> tuple[Mount, ...]:
        return ()

    def await_mended(self) -> None:
        pass


class FakeLoadAverages(FakeBackground):
    """A fake LoadAverages; ``deleted`` has the servers whose files are deleted."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    def delete(self, instance_uuid: str) -> None:
        self.deleted.append(instance_uuid)


class FakeBackups(FakeBackground):
    """A fake Backups; ``moves`` has the backup of each server."""

    def __init__(self) -> None:
        self.moves: dict[str, Move] = {}
        self.removed: list[str] = []

    def fetch(self, instance_uuid: str, data_root: str) -> Move | None:
        return self.moves.get(instance_uuid)

    def remove(self, instance_uuid: str) -> None:
        self.removed.append(instance_uuid)


class FakeConsoles:
    """A fake Consoles, whose only port is 10000; ``opened`` has the containers by server."""

    def __init__(self) -> None:
        self.opened: dict[str, str] = {}

    def open(self, instance_uuid: str, container_id: str, opener: Opener) -> int:
        self.opened[instance_uuid] = container_id
        return 10_000

    def close(self, instance_uuid: str) -> None:
        self.opened.pop(instance_uuid, None)

    def stop(self) -> None:
        self.opened.clear()


class FakeImages:
    """A fake Images; ``uploads`` lists image ids and their content.

    :ivar properties: the properties in Nova's record of an image
    :ivar trusted: the certificates of each call of ``ensure``
    :ivar most: the bound of the image's size of each call of ``ensure``
    """

    image = IMAGE

    def __init__(self) -> None:
        self.properties: dict[str, str] = {}
        self.uploads: list[tuple[str, str]] = []
        self.trusted: list[object] = []
        self.most: list[int] = []

    def ensure(
        self, context: object, image_meta: object, trusted: object = None, most: int = 0
    ) -> EngineImage:
        self.trusted.append(trusted)
        self.most.append(most)
        return self.image

    def ensure_empty(self) -> EngineImage:
        self.most.append(-1)
        return self.image

    def describe(self, context: object, image_id: str) -> objects.ImageMeta:
        return objects.ImageMeta.from_dict({"id": image_id, "properties": self.properties})

    @contextlib.contextmanager
    def snapshot(self, container: ContainerDetail) -> Iterator[ArchivedImage]:
        yield ArchivedImage(f"image of {container.name}".encode(), ())

    def cache(self, context: object, image_id: str) -> bool:
        return True

    def upload(self, context: object, image_id: str, image: ArchivedImage) -> None:
        self.uploads.append((image_id, image.config.decode()))


class FakeImageCache:
    """A fake ImageCache; ``updates`` lists the instances of each update."""

    def __init__(self) -> None:
        self.updates: list[list[Any]] = []

    def update(self, context: object, all_instances: Iterable[Any]) -> None:
        self.updates.append(list(all_instances))


@dataclass
class FakeCutOffImages:
    """A fake CutOffImages."""

    instances: list[Any] = field(default_factory=list)
    swept: list[Any] = field(default_factory=list)

    def add(self, instance: Any) -> None:
        self.instances.append(instance)

    def sweep(self) -> None:
        self.swept += self.instances
        self.instances.clear()


class FakeNovaRecords:
    """The real NovaRecords, except for operations that an earlier nova-compute left unfinished.

    :ivar begun: the events of the last actions, which an earlier nova-compute did not end
    :ivar ports: the ids of the ports that Nova has begun to allocate since then
    :ivar ended: the failures by event
    :ivar elsewhere: the ids of the instances that are deleted or on another host
    :ivar failure: an exception of Nova's for the question which ones these are
    """

    def __init__(self) -> None:
        self.elsewhere: set[str] = set()
        self.failure: Exception | None = None
        self.begun: list[nova_records.CutOffEvent] = []
        self.ports: set[str] = set()
        self.ended: dict[str, str | None] = {}
        self.notes: list[tuple[str, str]] = []

    def deleted(self, uuids: Iterable[str]) -> list[Any]:
        return []

    def gone(self, uuids: Collection[str], host: str) -> set[str]:
        if self.failure is not None:
            raise self.failure
        return self.elsewhere.intersection(uuids)

    def cut_off(self, host: str, events: Mapping[str, tuple[str, str]]) -> list[Any]:
        return []

    def cut_off_events(
        self, instance_uuid: str, host: str, actions: Collection[str] | None = None
    ) -> tuple[nova_records.CutOffEvent, ...]:
        return tuple(
            event
            for event in self.begun
            if event.instance_uuid == instance_uuid and (actions is None or event.action in actions)
        )

    def end_event(self, event: nova_records.CutOffEvent, failure: str | None) -> None:
        self.ended[event.event] = failure

    def note(self, context: Any, instance: Any, event: str, text: str) -> None:
        self.notes.append((event, text))

    def ports_since(self, instance_uuid: str, start_time: datetime) -> set[str]:
        return self.ports

    def save(self, instance: Any, task: str) -> bool:
        return nova_records.save(instance, task)

    def resume_cut_off(self, host: str) -> None:
        """Do nothing, because unit tests have no database."""

    def is_reverted_here(self, instance: Any) -> bool:
        return nova_records.is_reverted_here(instance)

    def take_back(self, context: Any, instance: Any, migration: Any) -> None:
        nova_records.take_back(context, instance, migration)

    def set_finished(self, instance: Any) -> None:
        nova_records.set_finished(instance)


class _EarlyExit(Exception):
    """Ends the block of ``wait_for_instance_event``; the argument is the events not to wait for."""


class FakeVirtAPI:
    """A fake of Nova's virtapi with events that arrive, fail or never arrive.

    :param coming: an event that delays the arrival; without it, the events arrive at once
    :ivar awaited: the events of the last wait
    """

    def __init__(self, outcome: str = "completed", coming: threading.Event | None = None) -> None:
        self.outcome = outcome
        self._coming = coming
        self.awaited: list[tuple[str, str]] = []

    def exit_wait_early(self, events: list[tuple[str, str]]) -> None:
        raise _EarlyExit(events)

    @contextlib.contextmanager
    def wait_for_instance_event(
        self, instance: object, events: list[tuple[str, str]], timeout: int, on_failure: object
    ) -> Iterator[None]:
        self.awaited = events
        try:
            yield
        except _EarlyExit as early:
            events = self.awaited = [event for event in events if event not in early.args[0]]
        if self._coming is not None:
            assert self._coming.wait(60)
        if events and self.outcome == "failed":
            on_failure(events[0][0], instance)  # type: ignore[operator]
        if events and self.outcome == "late":
            from novadocker.virt.docker.network import neutron

            raise neutron._event_timeout()


@dataclass
class FakeEnforcement:
    """A fake Enforcement; ``kept`` is the kernel's state.

    ``broken`` lists limits that the kernel does not accept.
    """

    kept: dict[str, Limits] = field(default_factory=dict)
    disks: dict[str, int] = field(default_factory=dict)
    devices: tuple[tuple[str, str], ...] = ()
    used_memory: int = 0
    used_disk: int = 0
    resizes_disks: bool = False
    broken: Callable[[Limits], bool] = lambda limits: False
    broken_rates: bool = False
    sweeps: int = 0

    def check_possible(self, limits: Limits) -> None:
        if any(asdict(limits.disk).values()) and not self.resizes_disks:
            raise exception.InvalidLimits(reason="no device")

    def enforce(
        self,
        instance_uuid: str,
        found: ContainerDetail,
        limits: Limits,
        devices: tuple[tuple[str, str], ...],
    ) -> None:
        self.limit_container(instance_uuid, found, limits, devices)
        self.limit_ports(instance_uuid, limits, devices)

    def limit_container(
        self,
        instance_uuid: str,
        found: ContainerDetail,
        limits: Limits,
        devices: tuple[tuple[str, str], ...],
    ) -> None:
        if self.broken(limits):
            raise exception.LimitsNotKept(reason="broken")
        self.kept[instance_uuid] = limits

    def limit_ports(
        self, instance_uuid: str, limits: Limits, devices: tuple[tuple[str, str], ...]
    ) -> None:
        if self.broken_rates:
            raise exception.LimitsNotKept(reason="broken rates")
        self.devices = devices

    def memory_in_use(self, found: ContainerDetail) -> int:
        return self.used_memory if found.pid else 0

    def disk_in_use(self, found: ContainerDetail) -> int:
        return self.used_disk

    def resize_disk(self, found: ContainerDetail, size: int) -> None:
        self.disks[found.id] = size

    def sweep(self) -> None:
        self.sweeps += 1


@dataclass
class FakeHost:
    """A fake of each collaborator of a driver; ``collaborators`` returns them to the driver.

    :ivar drivers: the storage driver of each server's container, by UUID, on the disk
    :ivar block_devices: the block devices of each instance in Nova's database
    :ivar instances: the instances in Nova's database, by UUID
    :ivar read_instance: reads ``instances`` by default
    """

    engine: FakeEngine = field(default_factory=FakeEngine)
    network: FakeNetwork = field(default_factory=FakeNetwork)
    marked_networks: Callable[[], set[str]] | None = None
    neutron: FakeNeutron = field(default_factory=FakeNeutron)
    guest_files: FakeGuestFiles = field(default_factory=FakeGuestFiles)
    drives: FakeDrives = field(default_factory=FakeDrives)
    volume_connector: FakeVolumeConnector = field(default_factory=FakeVolumeConnector)
    volume_devices: FakeVolumeDevices = field(default_factory=FakeVolumeDevices)
    volume_image: objects.ImageMeta | None = None
    volume_image_readable: bool = True
    block_devices: dict[str, Any] = field(default_factory=dict)
    enforcement: FakeEnforcement = field(default_factory=FakeEnforcement)
    drivers: dict[str, str] = field(default_factory=dict)
    transfer: FakeTransfer = field(default_factory=FakeTransfer)
    images: FakeImages = field(default_factory=FakeImages)
    image_cache: FakeImageCache = field(default_factory=FakeImageCache)
    checkpoints: FakeCheckpoints = field(default_factory=FakeCheckpoints)
    cut_off_images: FakeCutOffImages = field(default_factory=FakeCutOffImages)
    consoles: FakeConsoles = field(default_factory=FakeConsoles)
    load_averages: FakeLoadAverages = field(default_factory=FakeLoadAverages)
    backups: FakeBackups = field(default_factory=FakeBackups)
    nova_records: protocols.NovaRecords = field(default_factory=FakeNovaRecords)
    service_status: FakeServiceStatus = field(default_factory=FakeServiceStatus)
    device_metadata: DeviceMetadata = no_tags
    instances: dict[str, Any] = field(default_factory=dict)
    read_instance: ReadInstance | None = None
    cells: tuple[Cell, ...] = CELLS
    id_maps: IdMaps | None = None
    user_namespaces: UserNamespaces = field(default_factory=UserNamespaces)
    high_owner: tuple[str, int] | None = None
    read_resources: Callable[[EngineInfo, CpuSets], resources.Resources] = resources.read_resources
    root_volumes: FakeRootVolumes = field(init=False)

    def __post_init__(self) -> None:
        self.root_volumes = FakeRootVolumes(self.volume_devices)

    def collaborators(self) -> Collaborators:
        """Return the collaborators of a new driver on this host."""
        return Collaborators(
            engine=self.engine,
            server_list=ServerList(self.engine),
            create_events=lambda *_: FakeBackground(),
            create_service_status=lambda _virtapi: self.service_status,
            network=self.network,
            neutron=self.neutron,
            namespaces=self.network,
            device_metadata=self.device_metadata,
            read_instance=self.read_instance or (lambda _context, uuid: self.instances[uuid]),
            marked_networks=self.marked_networks or (lambda: set(self.network.wired)),
            instances_with_disks=lambda: set(self.volume_devices.held),
            runtime=self.network,
            guest_files=self.guest_files,
            build_config_drive=self.drives.build,
            drives=self.drives,
            checkpoints=self.checkpoints,
            volume_connector=self.volume_connector,
            volume_devices=self.volume_devices,
            root_volumes=self.root_volumes,
            read_volume_image=lambda *_: (
                VolumeImage(self.volume_image, self.volume_image_readable)
                if self.volume_image
                else None
            ),
            read_block_devices=lambda _context, _instance: self.block_devices,
            consoles=lambda: self.consoles,
            open_terminal=lambda _container, _kind: _no_terminal,
            lxcfs=FakeLxcfs(),
            load_averages=self.load_averages,
            user_budgets=FakeBackground(),
            enforcement=lambda _info: self.enforcement,
            hidden_servers=lambda info: {
                uuid: driver
                for uuid, driver in self.drivers.items()
                if driver != info.storage_driver
            },
            images=lambda _info: self.images,
            image_cache=lambda: self.image_cache,
            image_owners=Owners(lambda _layers, _most: self.high_owner),
            cut_off_images=self.cut_off_images,
            transfer=self.transfer,
            transport=lambda _instance_uuid: FakeTransport(),
            clear_transports=lambda: None,
            backups=self.backups,
            nova_records=self.nova_records,
            read_cells=lambda: self.cells,
            read_id_maps=lambda _info: self.id_maps,
            read_user_namespaces=lambda _info: self.user_namespaces,
            read_resources=self.read_resources,
        )


def _no_terminal() -> Any:
    raise NotImplementedError


def check_one_warning(caplog: pytest.LogCaptureFixture, instance_uuid: str, words: str) -> None:
    """Check that the log tells once, with the instance and without a traceback, of a refusal."""
    (found,) = [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert (found.levelname, found.exc_info) == ("WARNING", None)
    # It is text if a test before has set up the log of OpenStack.
    assert instance_uuid in str(vars(found)["instance"])
    assert words in found.getMessage()
    assert "Traceback" not in caplog.text
