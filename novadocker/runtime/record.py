# SPDX-License-Identifier: Apache-2.0
"""The records by which the driver says what the runtime shim adds to a container.

The record ``<container id>`` is a JSON object::

    {"version": 1,
     "namespaces": {"network": "/run/netns/nova-<uuid>",
                    "user": "/run/novadocker/users/nova-<uuid>"},
     "ids": {"first": 1879048192, "count": 65536},
     "devices": [{"path": "/dev/vdb", "source": "/dev/sdc", "major": 8, "minor": 32,
                  "writable": true, "rates": {"read_iops": 500}}],
     "root": {"path": "/dev/vda", "source": "/dev/sdb", "major": 8, "minor": 16,
              "writable": true},
     "restore": {"images": "/var/lib/novadocker/checkpoints/<host>/<uuid>/<container id>",
                 "criu": "/usr/sbin"}}

A record with ``ids`` gives a container the user namespace, in which 0 is the host's user and group
``first``. Without ``ids``, the shim adds the user namespace only to a container that the engine
gives one. ``devices`` has the volumes of the server, each as a device node at ``path``; ``source``
is the device on the host, which the shim compares with the numbers. ``rates`` are the limits of the
device in bytes or operations a second. ``root`` is the volume that the
server boots from: its file system is the container's root directory, and it has no node. While the
volume is disconnected, its ``source`` is ``/dev/null``, which the shim refuses. ``restore`` has the
directory of CRIU's images of the container's processes, with which the next start goes on, and the
directory of the program ``criu``; the shim removes it from the record. Each further kind of
addition is a further member, with a function here that checks it and a function in ``create`` that
adds it.
The shim refuses a record with a member or a version that it does not support, so that a container
never starts without an addition.

The directory ``<container id>.files`` beside the record exists until the next start of the
container. It contains ``etc/`` with files for /etc, ``login`` with the account that gets a
password, and ``.ssh/`` with the account's keys.

The driver writes by these rules, the shim reads by them. Because each start of a container waits
for the shim, this module imports only ``documents``.
"""

from novadocker.runtime import documents

FOLDER = "/run/novadocker/containers"
NETWORK_NAMESPACES = "/run/netns"
USER_NAMESPACES = "/run/novadocker/users"

DISKS = "/run/novadocker/disks"
"""The directory with a directory for each server: ``by-id`` is ``/dev/disk/by-id`` in the server,
and ``block`` is ``/sys/block``.
"""

CONFIG_DRIVES = "/var/lib/novadocker/config-drives"

CHECKPOINTS = "/var/lib/novadocker/checkpoints"
"""The directory of the images of suspended servers' processes: ``<host>/<uuid>/<container id>``."""

USED = ".used"
"""Suffix of a directory of images that a start has restored, or has begun to restore."""

RESTORED = ".restored"
"""Suffix of the file beside the record of a container that was restored and not yet started."""

CRIU_OPTIONS = ("--tcp-established", "--file-locks", "--ext-unix-sk")
"""Options of runc that a checkpoint and its restore must have in common."""

IDS_OF_SERVER = 65536
"""Number of users, and of groups, in a server's own user namespace."""

VERSION = 1
LARGEST_RECORD = 64 << 10

ETC_FILES = {"hostname": 0o644, "hosts": 0o644, "resolv.conf": 0o644, "machine-id": 0o444}
"""Names of the files that the shim may write into /etc, and their permissions."""

LARGEST_ETC_FILE = 64 << 10
LARGEST_KEYS = 1 << 20
LARGEST_LOGIN = 1 << 10

MOST_DEVICES = 100

DEVICES_ANNOTATION = "novadocker.devices"
"""Annotation of a container with the numbers of the volumes that it was started with."""

RATES = {
    "read_bytes": "throttleReadBpsDevice",
    "write_bytes": "throttleWriteBpsDevice",
    "read_iops": "throttleReadIOPSDevice",
    "write_iops": "throttleWriteIOPSDevice",
}
"""Limits of a device, each with its name in an OCI configuration."""

ROOT_KIND = "ext4"
"""The file system of a volume that is a root directory."""

ROOT_OPTIONS = "errors=remount-ro"
"""How it is mounted: a damaged one must not halt the host, as it may say itself."""

_DISK_PREFIXES = ("/dev/vd", "/dev/sd", "/dev/hd", "/dev/xvd")
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")
_HEXADECIMAL = frozenset("0123456789abcdef")


def block_link(major: int, minor: int) -> str:
    """Return the target of a device's link in /sys/block."""
    return f"../dev/block/{major}:{minor}"


class BlockDevice:
    """A block device of the host in a container.

    :ivar path: path in the container, such as ``/dev/vdb``
    :ivar source: path on the host
    :ivar rates: limits by the names in ``RATES``; without a limit if 0
    """

    def __init__(
        self,
        path: str,
        source: str,
        major: int,
        minor: int,
        writable: bool,
        rates: dict[str, int] | None = None,
    ) -> None:
        self.path = path
        self.source = source
        self.major = major
        self.minor = minor
        self.writable = writable
        self.rates = rates or {}


class Restore:
    """What a container's next start goes on with.

    :ivar images: directory of CRIU's images
    :ivar criu: directory of the program ``criu``
    """

    def __init__(self, images: str, criu: str) -> None:
        self.images = images
        self.criu = criu

    @property
    def container_id(self) -> str:
        """The container whose processes the images are."""
        return self.images.rpartition("/")[2]


class Record:
    """The additions to a container.

    :ivar namespaces: paths of namespaces by their types in the OCI configuration
    :ivar ids: first id on the host and number of ids of the server's own user namespace; None
        without one
    :ivar devices: the volumes of the server; None in a record of a driver without volumes
    :ivar root: the volume whose file system is the root directory; None without one
    :ivar restore: what the next start goes on with; None if it begins anew
    """

    def __init__(
        self,
        namespaces: dict[str, str],
        ids: tuple[int, int] | None = None,
        devices: list[BlockDevice] | None = None,
        root: BlockDevice | None = None,
        restore: Restore | None = None,
    ) -> None:
        self.namespaces = namespaces
        self.ids = ids
        self.devices = devices
        self.root = root
        self.restore = restore

    @property
    def disks(self) -> str:
        """The directory of the host with the server's links to its disks."""
        return f"{DISKS}/{self.namespaces['network'].rpartition('/')[2]}"


def is_container_id(text: str) -> bool:
    """Return True if the text is a container id of the engine."""
    return len(text) == 64 and _HEXADECIMAL.issuperset(text)


def is_disk_path(path: str) -> bool:
    """Return True if the text is the path of a volume in a container."""
    prefix = next((prefix for prefix in _DISK_PREFIXES if path.startswith(prefix)), path)
    letters = path.removeprefix(prefix)
    return 0 < len(letters) <= 3 and _LETTERS.issuperset(letters)


def of_instance(
    network_namespace: str,
    ids: tuple[int, int] | None = None,
    devices: list[BlockDevice] | None = None,
    root: BlockDevice | None = None,
) -> Record:
    """Return the record of a container that joins an instance's namespaces.

    The other parameters are those of ``Record``.

    :raises ValueError: the path is not a network namespace of an instance
    """
    name = network_namespace.removeprefix(f"{NETWORK_NAMESPACES}/")
    found = {"network": network_namespace, "user": f"{USER_NAMESPACES}/{name}"}
    return Record(_check_namespaces(found), ids, devices, root)


def serialize(record: Record) -> bytes:
    """Return the content of a record's file."""
    found: dict[str, object] = {"version": VERSION, "namespaces": record.namespaces}
    if record.ids is not None:
        found["ids"] = {"first": record.ids[0], "count": record.ids[1]}
    if record.devices is not None:
        found["devices"] = [vars(device) for device in record.devices]
    if record.root is not None:
        found["root"] = vars(record.root)
    if record.restore is not None:
        found["restore"] = vars(record.restore)
    return documents.serialize(found) + b"\n"


def parse(content: bytes) -> Record:
    """Return the record in a file.

    The drivers before version 1 of the record wrote the path of the network namespace as a line.
    Containers that they created have such records until the next start by the driver.

    :raises ValueError: the record is malformed or contains something that is not supported
    """
    if not content.startswith(b"{"):
        return of_instance(content.decode(errors="replace").removesuffix("\n"))
    found = documents.parse(content)
    if not isinstance(found, dict):
        raise ValueError("is not an object")
    version = found.pop("version", None)
    if type(version) is not int or version != VERSION:
        raise ValueError("has a version that this runtime shim does not support")
    checked: dict[str, object] = {}
    for name, value in found.items():
        if name not in _CHECKS:
            raise ValueError("has a member that this runtime shim does not support")
        checked[name] = _CHECKS[name](value)
    if "namespaces" not in checked:
        raise ValueError("does not name the network namespace of a server")
    if "ids" in checked and "user" not in found["namespaces"]:
        raise ValueError("has ids and no user namespace")
    root = checked.get("root")
    if isinstance(root, BlockDevice) and not root.writable:
        raise ValueError("has a root directory that cannot be written")
    if "restore" in checked:
        name = found["namespaces"]["network"].rpartition("/")[2]
        if found["restore"]["images"].split("/")[-2] != name.removeprefix("nova-"):
            raise ValueError("names the memory of another server")
    return Record(**checked)  # type: ignore[arg-type]


def _check_namespaces(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not value.keys() <= {"network", "user"}:
        raise ValueError("has malformed namespaces")
    network = value.get("network")
    name = network.removeprefix(f"{NETWORK_NAMESPACES}/") if isinstance(network, str) else ""
    if network != f"{NETWORK_NAMESPACES}/{name}" or not _is_namespace_name(name):
        raise ValueError("does not name the network namespace of a server")
    if value.get("user", f"{USER_NAMESPACES}/{name}") != f"{USER_NAMESPACES}/{name}":
        raise ValueError("does not name the user namespace of the same server")
    return value


def _check_ids(value: object) -> tuple[int, int]:
    if not isinstance(value, dict) or value.keys() != {"first", "count"}:
        raise ValueError("has malformed ids")
    first, count = value["first"], value["count"]
    if type(first) is not int or count != IDS_OF_SERVER or not is_range(first):
        raise ValueError("has malformed ids")
    return first, count


def is_range(first: int) -> bool:
    """Return True if a server's own user namespace may have the ids that begin with ``first``."""
    # The first range has the host's users; the last one has the id that means "no id".
    return first % IDS_OF_SERVER == 0 and 0 < first < (1 << 32) - IDS_OF_SERVER


def _check_devices(value: object) -> list[BlockDevice]:
    if not isinstance(value, list) or len(value) > MOST_DEVICES:
        raise ValueError("has malformed devices")
    devices = [_check_device(item) for item in value]
    if len({device.path for device in devices}) < len(devices):
        raise ValueError("has two devices at one path")
    return devices


def _check_device(value: object) -> BlockDevice:
    if not isinstance(value, dict) or value.keys() - {"rates"} != {
        "path",
        "source",
        "major",
        "minor",
        "writable",
    }:
        raise ValueError("has malformed devices")
    rates = value.get("rates", {})
    if (
        not isinstance(rates, dict)
        or not rates.keys() <= RATES.keys()
        or not all(type(rate) is int and rate >= 0 for rate in rates.values())
    ):
        raise ValueError("has malformed devices")
    path, source, writable = value["path"], value["source"], value["writable"]
    if (
        not isinstance(path, str)
        or not is_disk_path(path)
        or not isinstance(source, str)
        or not source.startswith("/dev/")
        or "/../" in f"{source}/"
        or not all(type(value[name]) is int and value[name] >= 0 for name in ("major", "minor"))
        or type(writable) is not bool
    ):
        raise ValueError("has malformed devices")
    return BlockDevice(path, source, value["major"], value["minor"], writable, rates)


def _check_restore(value: object) -> Restore:
    if not isinstance(value, dict) or value.keys() != {"images", "criu"}:
        raise ValueError("has a malformed restore")
    images, criu = value["images"], value["criu"]
    if (
        not isinstance(images, str)
        or not images.startswith(f"{CHECKPOINTS}/")
        or not isinstance(criu, str)
        or not criu.startswith("/")
        or ":" in criu
        or "/../" in f"{criu}/"
    ):
        raise ValueError("has a malformed restore")
    host, *names = images.removeprefix(f"{CHECKPOINTS}/").split("/")
    if (
        len(names) != 2
        or host in ("", ".", "..")
        or not _is_uuid(names[0])
        or not is_container_id(names[1])
    ):
        raise ValueError("has a malformed restore")
    return Restore(images, criu)


_CHECKS = {
    "namespaces": _check_namespaces,
    "ids": _check_ids,
    "devices": _check_devices,
    "root": _check_device,
    "restore": _check_restore,
}


def _is_namespace_name(name: str) -> bool:
    return name.startswith("nova-") and _is_uuid(name.removeprefix("nova-"))


def _is_uuid(text: str) -> bool:
    parts = text.split("-")
    return [len(part) for part in parts] == [8, 4, 4, 4, 12] and _HEXADECIMAL.issuperset(
        "".join(parts)
    )
