# SPDX-License-Identifier: Apache-2.0
"""Privileged functions that write the records of containers for the runtime shim, below /run.

``novadocker.runtime.record`` describes the records.
"""

import dataclasses
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from novadocker import naming, privsep
from novadocker.linux import cgroup, namespaces
from novadocker.linux.files import replace_file
from novadocker.privsep import arguments
from novadocker.privsep.guest import volume_devices
from novadocker.privsep.network import given, id_ranges, wiring
from novadocker.privsep.network.namespace import locked, namespace_path, user_namespace_path
from novadocker.runtime import record as records
from novadocker.state_files import namespaces as marks

FOLDER = Path(records.FOLDER)

# Days since 1970, until the year 4707.
DAYS = range(1_000_000)

# useradd(8) allows no capitals and full stops, but some images have accounts with them.
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_HASH = re.compile(r"[./0-9A-Za-z$=,]{0,256}")


@dataclass(frozen=True)
class Login:
    """Keys and a password for the account ``user`` of an instance.

    :ivar keys: lines for ``authorized_keys``; may be empty
    :ivar password_hash: in the form of crypt(5); if empty, the account keeps its password
    :ivar password_day: day on which the password was set, in days since 1970, as in shadow(5)
    """

    user: str
    keys: bytes = b""
    password_hash: str = ""
    password_day: int = 0


_LOGIN_FIELDS = [field.name for field in dataclasses.fields(Login)]


def is_user_name(name: str) -> bool:
    """Return True if the name is a valid account name."""
    return _USER.fullmatch(name) is not None


def check_login(user: object, password_hash: object) -> None:
    """Raise ValueError unless these are an account name and a password hash, which may be empty."""
    arguments.text(_USER, user)
    # The message must not contain the hash, because it is logged.
    if not isinstance(password_hash, str) or not _HASH.fullmatch(password_hash):
        raise ValueError("the password hash is malformed")


def write(
    container_id: str,
    namespace: str,
    etc_files: Mapping[str, bytes],
    login: Login | None,
    first_id: int | None,
    devices: list[records.BlockDevice],
    root: records.BlockDevice | None = None,
) -> None:
    """Write the record of a container, and the files for its next start.

    :param namespace: path of a network namespace
    :param etc_files: contents for /etc, by the names in ``records.ETC_FILES``
    :param first_id: first id on the host of the instance's own user namespace; None without one
    :param devices: the instance's volumes
    :param root: the volume that it boots from; None without one
    """
    ids = None if first_id is None else (first_id, records.IDS_OF_SERVER)
    record = FOLDER / container_id
    with suppress(FileNotFoundError, ValueError):
        root = root or _lost_root(records.parse(record.read_bytes()))
    content = records.serialize(records.of_instance(namespace, ids, devices, root))
    for folder in (FOLDER.parent, FOLDER):
        with suppress(FileExistsError):
            folder.mkdir(0o755)
    replace_file(record, content, mode=0o644, sync=False)
    if not etc_files and login is None:
        return
    files = _files_of(record)
    files.mkdir(0o700, exist_ok=True)
    if etc_files:
        (files / "etc").mkdir(exist_ok=True)
        for name, content in etc_files.items():
            replace_file(files / "etc" / name, content, mode=records.ETC_FILES[name], sync=False)
    if login is not None:
        _write_login(files, login)


def remove(container_id: str) -> None:
    """Delete the record of a container and the files beside it.

    Does nothing if the record does not exist.
    """
    record = FOLDER / container_id
    with suppress(FileNotFoundError):
        shutil.rmtree(_files_of(record))
    record.unlink(missing_ok=True)


def replace_devices(
    container_id: str,
    devices: list[records.BlockDevice],
    root: records.BlockDevice | None,
) -> None:
    """Replace the volumes in the record of a container, for its next start."""
    record = FOLDER / container_id
    found = records.parse(record.read_bytes())
    found.devices, found.root = devices, root or _lost_root(found)
    replace_file(record, records.serialize(found), mode=0o644, sync=False)


def _lost_root(record: records.Record) -> records.BlockDevice | None:
    """Return what a record names while the volume that its container boots from is disconnected.

    The shim refuses it, because with the files of the image the server would run without its data.

    :returns: None if the container does not boot from a volume
    """
    found = record.root
    if found is None:
        return None
    return records.BlockDevice(found.path, "/dev/null", found.major, found.minor, found.writable)


def containers_of(namespace: str) -> list[str]:
    """Return the ids of the containers whose records name a network namespace."""
    found = []
    with suppress(FileNotFoundError):
        for entry in os.scandir(FOLDER):
            # Another call may delete a record at this moment, and one malformed record must not
            # keep the others.
            with suppress(FileNotFoundError, ValueError):
                if entry.is_file() and _names(Path(entry).read_bytes(), namespace):
                    found.append(entry.name)
    return found


def _names(record: bytes, namespace: str) -> bool:
    return records.parse(record).namespaces["network"] == namespace


def _write_login(files: Path, login: Login) -> None:
    if login.keys:
        (files / ".ssh").mkdir(0o700, exist_ok=True)
        replace_file(files / ".ssh" / "authorized_keys", login.keys, mode=0o600, sync=False)
    fields = [login.user]
    if login.password_hash:
        fields += [login.password_hash, str(login.password_day)]
    replace_file(files / "login", " ".join(fields).encode() + b"\n", mode=0o600, sync=False)


def _files_of(record: Path) -> Path:
    return record.with_name(f"{record.name}.files")


@privsep.network_pctxt.entrypoint
def create_own_namespace(instance_uuid: str, first_id: int, id_count: int) -> None:
    """Create an instance's network namespace in a user namespace of its own. Idempotent.

    The user namespace has a range of ids that no other instance has. Replaces a network namespace
    of another kind, with all devices in it. Does nothing if a container of the instance runs.

    :param first_id: first id of the host for all ranges, a multiple of the size of a range
    :param id_count: number of ids for all ranges
    :raises ValueError: an argument is malformed
    :raises OSError: no range is free, or a namespace cannot be created
    """
    first, count = arguments.id_number(first_id), arguments.id_number(id_count)
    pool = range(first, first + count)
    if (
        not records.is_range(first)
        or count < records.IDS_OF_SERVER
        or pool[-1] not in arguments.IDS
    ):
        raise ValueError(f"{first_id}:{id_count} are not ids for user namespaces")
    path, user_path = namespace_path(instance_uuid), user_namespace_path(instance_uuid)
    name = naming.namespace_name(instance_uuid)
    with locked(instance_uuid):
        own = id_ranges.held(name) is not None and wiring.is_owned_by(path, user_path)
        if own or _runs(path):
            return
        _delete(instance_uuid, path)
        held = ((0, id_ranges.hold(name, instance_uuid, pool), records.IDS_OF_SERVER),)
        ids = namespaces.IdMaps(users=held, groups=held)
        namespaces.run_in_thread(wiring.create_owned, path, user_path, ids)


@privsep.network_pctxt.entrypoint
def leave_own_namespace(instance_uuid: str) -> None:
    """Delete an instance's namespaces if it has a user namespace of its own.

    Does nothing if a container of the instance runs.

    :raises ValueError: the argument is malformed
    """
    path = namespace_path(instance_uuid)
    with locked(instance_uuid):
        if has_own_ids(instance_uuid) and not _runs(path):
            _delete(instance_uuid, path)


def has_own_ids(instance_uuid: str) -> bool:
    """Return True if an instance has a user namespace of its own. Needs no privilege.

    :raises ValueError: the argument is malformed
    """
    return id_ranges.held(naming.namespace_name(arguments.instance_uuid(instance_uuid))) is not None


def _runs(namespace: str) -> bool:
    """Return True if a process of a container runs whose record names a network namespace."""
    containers = set(containers_of(namespace))
    return bool(containers) and any(container in containers for _, container in cgroup.processes())


def _delete(instance_uuid: str, path: str) -> None:
    """Delete an instance's namespaces. Does nothing if they do not exist.

    :param path: path of the network namespace
    """
    namespaces.unmount_namespace(path)
    _forget(instance_uuid, path)


def _forget(instance_uuid: str, path: str) -> None:
    """Delete an instance's user namespace, and what is recorded of its namespaces. Idempotent.

    :param path: path of the network namespace
    """
    marks.unmark(path)
    namespaces.unmount_namespace(user_namespace_path(instance_uuid))
    given.forget(naming.namespace_name(instance_uuid))
    id_ranges.release(naming.namespace_name(instance_uuid))


@privsep.network_pctxt.entrypoint
def delete_namespace(instance_uuid: str) -> None:
    """Delete an instance's network namespace and the records that name it.

    The kernel deletes the veth pairs in it. Does nothing if the namespace does not exist, or if
    another program created it: it has neither a mark nor a record.

    :raises ValueError: the argument is malformed
    """
    path = namespace_path(instance_uuid)
    with locked(instance_uuid):
        containers = containers_of(path)
        # Because the drivers before the marks left namespaces without one, a record suffices.
        if containers or marks.is_marked(path) or not namespaces.is_namespace(path):
            namespaces.unmount_namespace(path)
        _forget(instance_uuid, path)
        for container_id in containers:
            remove(container_id)


@privsep.network_pctxt.entrypoint
def bind_container(
    container_id: str,
    instance_uuid: str,
    etc_files: Mapping[str, bytes] | None = None,
    login: Mapping[str, Any] | None = None,
) -> None:
    """Write a container's record, by which the runtime shim joins it to an instance's namespace.

    If the instance has ids of its own (``create_own_namespace``), so has the container.
    The record appears atomically. The files and the login apply to the next start only.

    :param etc_files: contents for the container's /etc, by the names in ``records.ETC_FILES``
    :param login: a ``Login`` as a dictionary
    :raises ValueError: an argument is malformed
    """
    container = arguments.container_id(container_id)
    namespace = namespace_path(instance_uuid)
    parsed_files = {} if etc_files is None else _parse_etc_files(etc_files)
    parsed_login = None if login is None else _parse_login(login)
    # A volume that is attached or detached meanwhile is in the record or not, as in its file.
    with volume_devices.locked():
        volume_devices.prepare(instance_uuid)
        write(
            container,
            namespace,
            parsed_files,
            parsed_login,
            id_ranges.held(naming.namespace_name(instance_uuid)),
            *volume_devices.recorded(instance_uuid),
        )


@privsep.network_pctxt.entrypoint
def release_container(container_id: str) -> None:
    """Delete the record of a container and the files beside it.

    Does nothing if the record does not exist.

    :raises ValueError: the argument is malformed
    """
    remove(arguments.container_id(container_id))


def _parse_etc_files(value: object) -> Mapping[str, bytes]:
    return {
        arguments.one_of(records.ETC_FILES.keys(), name): arguments.data(
            records.LARGEST_ETC_FILE, content
        )
        for name, content in arguments.mapping(value).items()
    }


def _parse_login(value: object) -> Login:
    login = arguments.fields(_LOGIN_FIELDS, value)
    check_login(login["user"], login["password_hash"])
    keys = arguments.data(records.LARGEST_KEYS, login["keys"])
    if b"\0" in keys:
        raise ValueError("the keys are malformed")
    return Login(
        user=login["user"],
        keys=keys,
        password_hash=login["password_hash"],
        password_day=arguments.number(DAYS, login["password_day"]),
    )
