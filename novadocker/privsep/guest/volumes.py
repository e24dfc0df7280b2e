# SPDX-License-Identifier: Apache-2.0
"""Privileged functions that give block devices of the host to instances and take them back.

A container may open a device if its control group allows it, so a device is given by the group and
by a node, and taken by both. A descriptor that is open stays open, so a device that a process has
open is not taken.
"""

import errno
import json
import os
import re
import stat
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

from oslo_concurrency import lockutils, processutils

from novadocker import privsep
from novadocker.linux import cgroup, device_filter, device_users, libc, namespaces, openat
from novadocker.linux.cgroup import DiskRates
from novadocker.linux.device_filter import Rule
from novadocker.privsep import arguments
from novadocker.privsep.guest import cgroup as guest_cgroup
from novadocker.privsep.guest import runtime, volume_devices
from novadocker.privsep.guest.volume_devices import VolumeDevice
from novadocker.privsep.network.namespace import namespace_path
from novadocker.runtime import record as records

_SOURCE = re.compile(r"/dev/(?:[\w.@:+-]+/)*[\w.@:+-]+")
_FIELDS = ("volume_id", "path", "source", "writable", "shared", "root", "rates")
_NODES = "/run/novadocker/devices"
_SYSTEMD_SECONDS = 30
# Less than the context's bound for a call.
_UNMOUNT_SECONDS, _LOOK_SECONDS = 45, 0.02
_LARGEST_CONFIGURATION = 1 << 20
_MODE = stat.S_IFBLK | 0o660
_InThread = Callable[[int, int, VolumeDevice], None]


def holds(instance_uuid: str, volume_id: str) -> bool:
    """Return True if it is recorded that an instance has a volume. Needs no privilege.

    :raises ValueError: an argument is malformed
    """
    uuid, volume = arguments.instance_uuid(instance_uuid), arguments.instance_uuid(volume_id)
    return _held(uuid, volume) is not None


@privsep.volume_pctxt.entrypoint
def hold(instance_uuid: str, device: dict[str, Any]) -> None:
    """Record that an instance has a volume, for each start of its containers. Idempotent.

    :param device: ``volume_id``, ``path``, ``source``, ``writable``, ``shared``, ``root`` and
        ``rates``, as in ``VolumeDevice``
    :raises ValueError: an argument is malformed, or the source is no block device
    :raises FileExistsError: the instance has another volume at the path
    :raises OSError: another instance of this host has the device, the host uses it itself, or
        there is no device
    """
    uuid = arguments.instance_uuid(instance_uuid)
    found = _parse(device)
    with volume_devices.locked():
        held = volume_devices.held(uuid)
        kept = [each for each in held if each.volume_id != found.volume_id]
        if any(each.path == found.path for each in kept):
            raise FileExistsError(errno.EEXIST, "the instance has another volume", found.path)
        if found.root and any(each.root for each in kept):
            raise FileExistsError(errno.EEXIST, "the instance has another root", found.path)
        sharing = [other for other in volume_devices.others(uuid) if other.number == found.number]
        for other in sharing:
            if not (other.shared and found.shared):
                raise OSError(
                    errno.EBUSY, f"another instance of this host has volume {other.volume_id}"
                )
        # A container that has the device already, and may mount, uses it itself.
        known = [*sharing, *(each for each in held if each.number == found.number)]
        if not known and is_claimed(found.source):
            raise OSError(errno.EBUSY, "the host uses the device itself", found.source)
        volume_devices.write(uuid, (*kept, found))
        _update_records(uuid)


@privsep.volume_pctxt.entrypoint
def release(instance_uuid: str, volume_id: str) -> bool:
    """Record that an instance has a volume no more. Idempotent.

    :returns: True if no other instance of this host has the volume
    :raises ValueError: an argument is malformed
    :raises OSError: the volume is the root directory of the instance, which still has it mounted
    """
    uuid, volume = arguments.instance_uuid(instance_uuid), arguments.instance_uuid(volume_id)
    device = _held(uuid, volume)
    if device is not None and device.root:
        _await_unmount(device.source)
    with volume_devices.locked():
        held = volume_devices.held(uuid)
        if any(each.volume_id == volume for each in held):
            volume_devices.write(uuid, tuple(each for each in held if each.volume_id != volume))
            _update_records(uuid)
        return all(each.volume_id != volume for each in volume_devices.others(uuid))


@privsep.network_pctxt.entrypoint
def forget(instance_uuid: str) -> None:
    """Delete what is recorded of an instance's volumes. Idempotent.

    :raises ValueError: the argument is malformed
    """
    uuid = arguments.instance_uuid(instance_uuid)
    with volume_devices.locked():
        volume_devices.forget(uuid)


@privsep.volume_pctxt.entrypoint
def give(instance_uuid: str, volume_id: str, container_id: str, pid: int) -> None:
    """Give a volume that an instance holds to its running container. Idempotent.

    :param pid: process id of the container's first process
    :raises ValueError: an argument is malformed, or the instance does not hold the volume
    :raises FileExistsError: the container has another file at the path
    :raises OSError: the kernel refused, or the process does not belong to the container
    """
    uuid, volume = arguments.instance_uuid(instance_uuid), arguments.instance_uuid(volume_id)
    container, process = arguments.container_id(container_id), arguments.process(pid)
    with _locked(uuid):
        device = _held(uuid, volume)
        if device is None:
            raise ValueError(f"the instance does not hold volume {volume!r}")
        if device.root:
            raise ValueError("a root directory is given by the start of the container")
        with ExitStack() as undo:
            undo.callback(_limit, container, process, device, dict.fromkeys(device.rates, 0))
            undo.callback(_allow, uuid, container, process, device, False)
            _limit(container, process, device, device.rates)
            _allow(uuid, container, process, device, True)
            _in_container(container, process, _put_node, device)
            undo.callback(_in_container, container, process, _remove_node, device)
            volume_devices.link(uuid, device)
            undo.pop_all()


@privsep.volume_pctxt.entrypoint
def take(instance_uuid: str, volume_id: str, container_id: str, pid: int) -> str:
    """Take a volume from an instance's running container, unless a process has it open. Idempotent.

    :param pid: process id of the container's first process
    :returns: what has the device open; empty if it was taken
    :raises ValueError: an argument is malformed
    :raises OSError: the kernel refused, or the process does not belong to the container
    """
    uuid, volume = arguments.instance_uuid(instance_uuid), arguments.instance_uuid(volume_id)
    container, process = arguments.container_id(container_id), arguments.process(pid)
    with _locked(uuid):
        device = _held(uuid, volume)
        if device is None:
            return ""
        if device.root:
            return "its root directory"
        with ExitStack() as undo:
            undo.callback(_allow, uuid, container, process, device, True)
            # No process can open the device from now on, so the search ends.
            _allow(uuid, container, process, device, False)
            user = _user_of(container, device)
            if user:
                return user
            _in_container(container, process, _remove_node, device)
            volume_devices.unlink(uuid, device)
            undo.pop_all()
        # Another server's disk may have the number next.
        _limit(container, process, device, dict.fromkeys(device.rates, 0))
        return ""


def _parse(value: object) -> VolumeDevice:
    fields = arguments.fields(_FIELDS, value)
    path, source = (
        fields["path"],
        arguments.without_detours(arguments.text(_SOURCE, fields["source"])),
    )
    if not isinstance(path, str) or not records.is_disk_path(path):
        raise ValueError(f"{path!r} is not the path of a disk")
    volume_id = arguments.instance_uuid(fields["volume_id"])
    writable, shared, root = (
        arguments.flag(fields[name]) for name in ("writable", "shared", "root")
    )
    if root and (shared or not writable):
        raise ValueError("a root directory is of one instance, which writes it")
    rates = arguments.rates(list(records.RATES), fields["rates"])
    found = os.stat(source)
    if not stat.S_ISBLK(found.st_mode):
        raise ValueError(f"{source!r} is not a block device")
    major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
    return VolumeDevice(volume_id, path, source, major, minor, writable, shared, root, rates)


def _held(instance_uuid: str, volume_id: str) -> VolumeDevice | None:
    found = volume_devices.held(instance_uuid)
    return next((device for device in found if device.volume_id == volume_id), None)


def _update_records(instance_uuid: str) -> None:
    """Write the volumes of an instance into the records of its containers."""
    devices, root = volume_devices.recorded(instance_uuid)
    for container_id in runtime.containers_of(namespace_path(instance_uuid)):
        runtime.replace_devices(container_id, devices, root)


def _allow(
    instance_uuid: str, container_id: str, pid: int, device: VolumeDevice, allowed: bool
) -> None:
    """Allow or deny a container to open a device."""
    groups = cgroup.groups(pid, container_id)
    group = groups.directories["devices" if groups.version == 1 else ""]
    if group.name.endswith(".scope"):
        _tell_systemd(group.name, device, allowed)
    if groups.version == 1:
        access = "rw" if device.writable or not allowed else "r"
        file = "devices.allow" if allowed else "devices.deny"
        groups.write("devices", file, f"b {device.major}:{device.minor} {access}")
        return
    wanted = [
        each
        for each in volume_devices.held(instance_uuid)
        if not each.root and (each.volume_id != device.volume_id or allowed)
    ]
    device_filter.replace_program(group, [*_started_rules(pid), *map(_rule, wanted)])


def _limit(container_id: str, pid: int, device: VolumeDevice, rates: Mapping[str, int]) -> None:
    """Limit how fast a container reads and writes a device, if the device has limits at all."""
    if any(device.rates.values()):
        disk = f"{device.major}:{device.minor}"
        guest_cgroup.write_disk_rates(pid, container_id, disk, DiskRates(**rates))


def _tell_systemd(scope: str, device: VolumeDevice, allowed: bool) -> None:
    """Change what systemd allows of a device in a control group that it manages.

    systemd has a program of its own on cgroup v2, and sets its rules anew when it is reloaded.
    It can't delete one rule, but a rule replaces that of the same path. The path is the one of
    runc's rules for the devices that a container starts with, which also allow it to make nodes of
    all devices.
    """
    access = ("rw" if device.writable else "r") if allowed else "m"
    setting = f"DeviceAllow=/dev/block/{device.major}:{device.minor} {access}"
    try:
        processutils.execute(
            *("systemctl", "set-property", "--runtime", scope, setting), timeout=_SYSTEMD_SECONDS
        )
    except processutils.ProcessExecutionError as error:
        raise OSError(errno.EIO, f"systemd does not allow the device: {error.stderr}") from error
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(errno.ETIMEDOUT, "systemd does not answer") from error


def _rule(device: VolumeDevice) -> Rule:
    access = "rw" if device.writable else "r"
    return Rule(True, "b", access, device.major, device.minor)


def _started_rules(pid: int) -> list[Rule]:
    """Return the rules for devices that a container was started with, without its volumes.

    The parent of a container's first process is containerd's shim, whose working directory is the
    bundle.
    """
    status = Path(f"/proc/{pid}/status").read_bytes()
    parent = re.search(rb"^PPid:\t([0-9]+)$", status, re.MULTILINE)
    if parent is None:
        raise ProcessLookupError(f"process {pid} has no parent")
    with open(f"/proc/{int(parent[1])}/cwd/config.json", "rb") as source:
        if os.fstat(source.fileno()).st_uid != 0:
            raise PermissionError(errno.EPERM, "the configuration is not root's", source.name)
        config = json.loads(source.read(_LARGEST_CONFIGURATION))
    annotation = config.get("annotations", {}).get(records.DEVICES_ANNOTATION, "")
    found = config.get("linux", {}).get("resources", {}).get("devices", [])
    return [
        *(
            Rule(
                bool(rule.get("allow")),
                rule.get("type") or "a",
                rule.get("access") or "rwm",
                _number(rule.get("major")),
                _number(rule.get("minor")),
            )
            for rule in volume_devices.without_volumes(found, annotation)
        ),
        *device_filter.RUNC_RULES,
    ]


def _number(value: int | None) -> int | None:
    return None if value is None or value < 0 else value


def _user_of(container_id: str, device: VolumeDevice) -> str:
    """Return the process of a container that has a device open, or the host's use of it."""
    user = device_users.find(container_id, device.number)
    if user:
        return user
    if device.shared:
        return ""
    return "a mount or another device" if is_claimed(device.source) else ""


def _await_unmount(source: str) -> None:
    """Wait until the file system of a container that has ended is unmounted.

    The kernel unmounts it after the end of the last process, and writes to the device meanwhile. It
    reports the end of that nowhere.

    :raises OSError: it is still mounted
    """
    deadline = time.monotonic() + _UNMOUNT_SECONDS
    while is_claimed(source):
        if time.monotonic() > deadline:
            raise OSError(errno.EBUSY, "the root directory is still mounted", source)
        time.sleep(_LOOK_SECONDS)


def is_claimed(source: str) -> bool:
    """Return True if a block device is mounted, is swap, or is part of another device."""
    try:
        os.close(os.open(source, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        # A device that is lost is not claimed.
        return error.errno == errno.EBUSY
    return False


def _in_container(container_id: str, pid: int, function: _InThread, device: VolumeDevice) -> None:
    """Call a function in a thread, with a container's mount namespace and its root user's id."""
    with openat.pinned(pid) as process:
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            owner = _root_of(pid)
            openat.check_process(container_id, pid, process)
            namespaces.run_in_thread(function, namespace, owner, device)
        finally:
            os.close(namespace)


def _root_of(pid: int) -> int:
    """Return the user on the host that is root in a process's user namespace."""
    for line in Path(f"/proc/{pid}/uid_map").read_bytes().split(b"\n")[:-1]:
        inside, outside, _ = map(int, line.split())
        if inside == 0:
            return outside
    raise OSError(errno.EOVERFLOW, "the container has no root user")


def _put_node(namespace: int, owner: int, device: VolumeDevice) -> None:
    """Mount a device node at its path in a mount namespace.

    A node in the container's own file system would not do, because the kernel opens no device of a
    file system that a user namespace has mounted. The path has no directory that a tenant could
    replace by a link, and the kernel follows no link at its end.
    """
    with suppress(FileExistsError):
        os.mkdir(_NODES, 0o755)
    libc.unshare(libc.CLONE_FS | libc.CLONE_NEWNS)
    libc.mount("", "/", libc.MS_SLAVE | libc.MS_REC)
    libc.mount_tmpfs(_NODES, libc.MS_NOSUID | libc.MS_NOEXEC, "mode=711,size=64k")
    node = f"{_NODES}/node"
    os.mknod(node, _MODE, device.number)
    os.chmod(node, stat.S_IMODE(_MODE))
    os.chown(node, owner, owner)
    tree = libc.clone_mount(node)
    try:
        libc.setns(namespace, libc.CLONE_NEWNS)
        if _is_there(device):
            return
        libc.set_file_ids(owner, owner)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(device.path, flags, 0o600))
        try:
            libc.attach_mount(tree, device.path)
        except OSError:
            os.unlink(device.path)
            raise
    finally:
        os.close(tree)


def _is_there(device: VolumeDevice) -> bool:
    try:
        found = os.lstat(device.path)
    except FileNotFoundError:
        return False
    return stat.S_ISBLK(found.st_mode) and found.st_rdev == device.number


def _remove_node(namespace: int, owner: int, device: VolumeDevice) -> None:
    """Remove a device node from a mount namespace. A tenant may have removed or replaced it."""
    # setns(2) refuses a thread that shares its root and working directory with other threads.
    libc.unshare(libc.CLONE_FS)
    libc.setns(namespace, libc.CLONE_NEWNS)
    try:
        libc.umount(device.path, libc.MNT_DETACH | libc.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
    libc.set_file_ids(owner, owner)
    with suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(device.path)


def _locked(instance_uuid: str) -> AbstractContextManager[object]:
    """Lock the devices of an instance's running container."""
    return lockutils.lock(f"novadocker-volumes-{instance_uuid}")  # type: ignore[no-any-return]
