# SPDX-License-Identifier: Apache-2.0
"""The program that prepares a container before runc creates it; ``novadocker-runtime`` runs it.

It makes the container join the namespaces that the driver created for its server, lets a systemd
manage its control groups, leaves /etc/hostname to the tenant, sets the size of the terminal, and
copies the driver's files into the container's file system. It refuses a container whose terminal
the engine has closed.

A server whose record has ids of the host gets a user namespace of its own (``idmapped``): the
engine's configuration has none, so this program adds it, after it has written the driver's files
with the owners that they have on the disk.

The engine has no option for an existing network namespace, but the OCI configuration has one: the
``path`` of a namespace in the bundle's ``config.json``. A container is not created if it has no
record, or if its network namespace does not exist. With userns-remap the driver's user namespace
owns the network namespace. The container joins that user namespace, too, because a process in
another one has no capabilities over the network.

No process of the tenant runs yet, and no program of the image is run. Because each start of a
container waits for this program, it runs without Python's site directories and imports no more than
it needs: instead of ``os`` and ``stat``, the modules in C behind them.
"""

import _stat
import errno
import posix
import sys

from novadocker.runtime import documents, record, tree
from novadocker.runtime.tree import Fault, Owner, Tree

LARGEST_CONFIGURATION = 1 << 20
# As in novadocker.linux.openat for running containers.
LARGEST_FILE = 1 << 20
_CONTROL_GROUPS = "/sys/fs/cgroup"
_CONTROL_GROUPS_INSIDE = "/sys/fs/cgroup"
_MOUNTS = "/proc/mounts"
# In the order in which systemd looks for units.
_UNIT_FOLDERS = (
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/lib/systemd/system",
    "/usr/lib/systemd/system",
)
# HOST_NAME_MAX of the kernel, and the characters that hostnamed(8) allows.
_LONGEST_HOSTNAME = 64
_HOSTNAME = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")
# As in novadocker.extra_specs. These have no limit but the user namespace.
_POWERFUL = frozenset(("CAP_DAC_READ_SEARCH", "CAP_SYS_ADMIN"))
_FAILURE_STATUS = 3
# Programs assume this size if the terminal has none.
_ROWS, _COLUMNS = 24, 80
_NS_GET_NSTYPE = 0xB703
_CLONE_NEWUSER = 0x10000000
_PING_GROUPS = "net.ipv4.ping_group_range"
_KEPT_FLAGS = (("nosuid", posix.ST_NOSUID), ("nodev", posix.ST_NODEV), ("noexec", posix.ST_NOEXEC))
_CRIU_ANNOTATION = "org.criu.config"
# The script reads this descriptor until runc has replaced this program.
_ANSWER = 3
_OWN_FILE = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC


class Call:
    """The arguments of a call of runc.

    :ivar log: path of runc's log; empty without one
    :ivar state: directory of runc's state; empty without one
    """

    def __init__(self, arguments: list[str]) -> None:
        self.log = ""
        self.state = ""
        self.command = ""
        self.bundle = "."
        self.container_id = ""
        option = ""
        for word in arguments:
            if option:
                self._set(option, word)
                option = ""
            elif word.startswith("-"):
                option, equals, value = word.partition("=")
                if equals:
                    self._set(option, value)
                if equals or option not in _OPTIONS_WITH_VALUE:
                    option = ""
            elif not self.command:
                self.command = word
            else:
                self.container_id = word

    def _set(self, option: str, value: str) -> None:
        if option == "--log":
            self.log = value
        elif option == "--root":
            self.state = value
        elif option in ("-b", "--bundle"):
            self.bundle = value


class Device:
    """A device node in an OCI configuration.

    :ivar path: absolute path in the container
    :ivar mode: type and permissions as in stat(2)
    :raises ValueError: the configuration is malformed
    """

    def __init__(self, found: dict[str, object]) -> None:
        path, kind = found.get("path"), found.get("type")
        if not isinstance(path, str) or kind not in ("b", "c", "u"):
            raise ValueError("the device has no path or no type")
        self.path = path
        self.mode = (_stat.S_IFBLK if kind == "b" else _stat.S_IFCHR) | self._number(
            found, "fileMode", 0o666
        ) & 0o777
        self.major = self._number(found, "major")
        self.minor = self._number(found, "minor")
        self.uid = self._number(found, "uid")
        self.gid = self._number(found, "gid")

    @staticmethod
    def _number(found: dict[str, object], name: str, missing: int = 0) -> int:
        value = found.get(name, missing)
        if not isinstance(value, int) or value < 0:
            raise ValueError(f"the device has a malformed {name}")
        return value


class Configuration:
    """The bundle's ``config.json``.

    :ivar content: the configuration, which this program changes
    """

    def __init__(self, path: str, container_id: str) -> None:
        self._path = path
        self._id = container_id
        try:
            with open(path, "rb", buffering=0) as source:
                content = tree.read_all(source.fileno(), LARGEST_CONFIGURATION)
        except OSError as error:
            raise self._fault(f"can't be read: {error.strerror}") from error
        if content is None:
            raise self._fault(f"has more than {LARGEST_CONFIGURATION} bytes")
        try:
            found = documents.parse(content)
        except ValueError as error:
            raise self._fault("is malformed") from error
        self.content = self._object(found)
        linux = self._object(self.content.get("linux", {}))
        self.linux = linux
        self.process = self._object(self.content.get("process", {}))
        self.namespaces = self._objects(linux.get("namespaces", []))
        self.mounts = self._objects(self.content.get("mounts", []))

    def write(self) -> None:
        """Write the configuration for runc."""
        try:
            with open(self._path, "wb") as output:
                output.write(documents.serialize(self.content) + b"\n")
        except (OSError, ValueError) as error:
            raise self._fault("can't be written") from error

    @property
    def annotations(self) -> dict[str, object]:
        """The annotations, which runc ignores."""
        return self._object(self.content.setdefault("annotations", {}))

    @property
    def device_nodes(self) -> list[dict[str, object]]:
        """The device nodes."""
        return self._objects(self.linux.setdefault("devices", []))

    @property
    def device_rules(self) -> list[dict[str, object]]:
        """The rules of the control group for devices."""
        resources = self._object(self.linux.setdefault("resources", {}))
        return self._objects(resources.setdefault("devices", []))

    def device_limits(self, name: str) -> list[dict[str, object]]:
        """Return the limits of a kind for block devices."""
        resources = self._object(self.linux.setdefault("resources", {}))
        # The engine writes null for what has no limit.
        limits = self._object(resources.get("blockIO") or {})
        resources["blockIO"] = limits
        found = self._objects(limits.get(name) or [])
        limits[name] = found
        return found

    @property
    def root(self) -> str:
        """The root directory on the host."""
        found = self._object(self.content.get("root", {})).get("path")
        if not isinstance(found, str) or not found.startswith("/"):
            raise Fault(f"container {self._id} has no root directory in its configuration")
        return found

    @root.setter
    def root(self, path: str) -> None:
        self._object(self.content.get("root", {}))["path"] = path

    @property
    def volumes(self) -> dict[str, str]:
        """Sources of bind mounts by their destinations."""
        found = {}
        for mount in self.mounts:
            destination, source = mount.get("destination"), mount.get("source")
            if mount.get("type") == "bind":
                if not isinstance(destination, str) or not isinstance(source, str):
                    raise self._fault("is malformed")
                found[destination] = source
        return found

    def host_id(self, kind: str, number: int) -> int:
        """Return the id on the host of a container's user or group.

        :param kind: ``uid`` or ``gid``
        :raises Fault: the container's user namespace does not map the id
        """
        if not _find(self.namespaces, type="user"):
            return number
        for mapping in self._objects(self.linux.get(f"{kind}Mappings", [])):
            inside, outside, size = (mapping.get(key) for key in ("containerID", "hostID", "size"))
            if not (isinstance(inside, int) and isinstance(outside, int) and isinstance(size, int)):
                raise self._fault("is malformed")
            if 0 <= number - inside < size:
                return outside + number - inside
        raise Fault(f"the user namespace of container {self._id} does not map {kind} {number}")

    def take_devices(self) -> list[Device]:
        """Remove the device nodes from the configuration and return them.

        In a user namespace, runc does not create device nodes but expects the host to have nodes
        at the same paths, with the right owners.
        """
        try:
            found = [Device(item) for item in self._objects(self.linux.get("devices") or [])]
        except ValueError as error:
            raise self._fault("is malformed") from error
        self.linux["devices"] = []
        return found

    def check_process_ids(self, count: int) -> None:
        """Check that a user namespace with so many ids maps those of the first process."""
        user = self._object(self.process.get("user", {}))
        groups = user.get("additionalGids") or []
        if not isinstance(groups, list):
            raise self._fault("is malformed")
        for number in (user.get("uid", 0), user.get("gid", 0), *groups):
            if not isinstance(number, int):
                raise self._fault("is malformed")
            if number >= count:
                raise Fault(
                    f"the image's process has the user or group {number}, but a user namespace "
                    f"has ids up to {count - 1} only (docker:userns=host)"
                )

    def owner(self, uid: int, gid: int) -> Owner:
        """Return the user and group on the host of a user and group of the container."""
        return Owner(self.host_id("uid", uid), self.host_id("gid", gid))

    def _object(self, value: object) -> dict[str, object]:
        if not isinstance(value, dict):
            raise self._fault("is malformed")
        return value

    def _objects(self, value: object) -> list[dict[str, object]]:
        if not isinstance(value, list):
            raise self._fault("is malformed")
        for item in value:
            self._object(item)
        return value

    def _fault(self, reason: str) -> Fault:
        return Fault(f"the configuration of container {self._id} {reason}")


def join_namespaces(config: Configuration, container_id: str, paths: dict[str, str]) -> None:
    """Make the container join its server's network namespace and user namespace.

    :param paths: paths of namespaces by their types
    """
    network = paths["network"]
    if not _exists(network):
        raise Fault(
            f"network namespace {network} of container {container_id} is missing; start the server "
            "through Nova"
        )
    found = _find(config.namespaces, type="network")
    if len(found) > 1:
        raise Fault(f"container {container_id} has two network namespaces")
    if not found or found[0].get("path"):
        raise Fault(
            f"container {container_id} has no network namespace of its own in its configuration"
        )
    found[0]["path"] = network
    for space in _find(config.namespaces, type="user"):
        user = paths.get("user", "")
        if not _is_user_namespace(user):
            raise _no_user_namespace(user, container_id)
        space["path"] = user


def add_user_namespace(
    config: Configuration, container_id: str, path: str, ids: tuple[int, int]
) -> None:
    """Make the container join its server's own user namespace.

    :param path: path of the user namespace
    :param ids: first id on the host and number of ids
    :raises Fault: the engine remaps users, or a user of the image has no id in the namespace
    """
    first, count = ids
    if _find(config.namespaces, type="user"):
        raise Fault("a server has no user namespace of its own if the engine remaps users")
    if not _is_user_namespace(path):
        raise _no_user_namespace(path, container_id)
    config.check_process_ids(count)
    mapping: dict[str, object] = {"containerID": 0, "hostID": first, "size": count}
    config.linux["uidMappings"] = [mapping]
    config.linux["gidMappings"] = [mapping]
    config.namespaces.append({"type": "user", "path": path})
    sysctls = config.linux.get("sysctl")
    if isinstance(sysctls, dict) and _PING_GROUPS in sysctls:
        sysctls[_PING_GROUPS] = _mapped_groups(sysctls[_PING_GROUPS], count)


def _mapped_groups(value: object, count: int) -> object:
    """Return those groups of a value of ``net.ipv4.ping_group_range`` that a user namespace maps.

    The kernel refuses other groups. The engine's default is all groups of the kernel.

    :param count: number of the namespace's groups
    """
    numbers = str(value).split()
    if len(numbers) != 2 or not all(map(str.isdecimal, numbers)):
        return value
    first, last = map(int, numbers)
    # The kernel's value for no group.
    return f"{first} {min(last, count - 1)}" if first < count else "1 0"


def delegate_systemd_group(config: Configuration, first: int) -> None:
    """Give a container's group in the cgroup v1 hierarchy name=systemd to its root user.

    With cgroup v2, runc does so. The hierarchy has no limits.
    """
    for path in make_systemd_group(config):
        # As for a delegated group in the kernel's cgroup-v2.rst and in systemd's delegation.
        for name in ("", "/cgroup.procs", "/tasks", "/cgroup.clone_children"):
            posix.chown(f"{path}{name}", first, first)


def make_systemd_group(config: Configuration) -> list[str]:
    """Create a container's group in the cgroup v1 hierarchy name=systemd; return its path, if any.

    runc would create it after it has looked for the mount's source.
    """
    destination = f"{_CONTROL_GROUPS_INSIDE}/systemd"
    paths = [
        str(group["source"]) for group in _find(config.mounts, destination=destination, type="bind")
    ]
    for path in paths:
        made = ""
        for name in path.removeprefix(f"{_CONTROL_GROUPS}/").split("/"):
            made = f"{made}/{name}"
            try:  # noqa: SIM105
                posix.mkdir(f"{_CONTROL_GROUPS}{made}", 0o755)
            except FileExistsError:
                pass
    return paths


def _no_user_namespace(path: str, container_id: str) -> Fault:
    return Fault(
        f"user namespace {path} of container {container_id} is missing; start the server "
        "through Nova"
    )


def _exists(path: str) -> bool:
    try:
        posix.stat(path)
    except OSError:
        return False
    return True


def _is_user_namespace(path: str) -> bool:
    # Most containers have no user namespace, so most starts do not wait for this import.
    import fcntl

    try:
        descriptor = posix.open(path, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC)
    except OSError:
        return False
    try:
        return fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == _CLONE_NEWUSER
    except OSError:
        return False
    finally:
        posix.close(descriptor)


def let_systemd_manage(config: Configuration) -> None:
    """Make the control group of a systemd that is the container's first process writable.

    With cgroup v1 that is its group in the hierarchy name=systemd, which has no limits; hierarchies
    with limits stay read-only. With cgroup v2 it is its group in the only hierarchy; the host's
    mount option nsdelegate keeps the container from writing the limits at the root of the group.
    """
    if _run_of_systemd(config) is None:
        return
    _leave_out_volumes(config)
    groups = _find(config.mounts, destination=_CONTROL_GROUPS_INSIDE, type="cgroup")
    options = groups[0].get("options") if groups else None
    if not _has_own_groups(config) or not isinstance(options, list) or "ro" not in options:
        return
    if _is_unified():
        _delegate_unified(groups[0], "systemd")
        return
    if not _exists(f"{_CONTROL_GROUPS}/systemd"):
        raise Fault(
            "systemd in a server needs the control group hierarchy name=systemd on the host"
        )
    own: dict[str, object] = {
        "destination": f"{_CONTROL_GROUPS_INSIDE}/systemd",
        "type": "bind",
        "source": f"{_CONTROL_GROUPS}/systemd{_control_group(config)}",
        "options": ["bind", "nosuid", "noexec", "nodev"],
    }
    config.mounts.insert(config.mounts.index(groups[0]) + 1, own)


def check_user_namespace(config: Configuration) -> None:
    """Refuse a container whose capabilities would be those of the host's root.

    The container may have been created while its server had a user namespace.

    :raises Fault: the container has no user namespace
    """
    # The driver leaves the profile out only for ``docker:nesting=host``.
    if "seccomp" not in config.linux or _find(config.namespaces, type="user"):
        return
    if not _POWERFUL.isdisjoint(_bounding_set(config)):
        raise Fault(
            "the capabilities of the server need a user namespace, and it has none on this host "
            "(docker:userns, [docker] user_namespaces)"
        )


def _bounding_set(config: Configuration) -> list[object]:
    capabilities = config.process.get("capabilities")
    bounding = capabilities.get("bounding") if isinstance(capabilities, dict) else None
    return bounding if isinstance(bounding, list) else []


def let_engine_manage(config: Configuration, owner: Owner) -> None:
    """Let a server that runs containers in its user namespace prepare /sys for them.

    :param owner: the user and group on the host of the server's root
    """
    if not _nests(config):
        return
    for mount in _find(config.mounts, destination="/sys", type="sysfs"):
        # The kernel mounts a writable /sys in a privileged container inside only if the server's is
        # writable. The files belong to the host's root.
        _set_writable(mount)
    for mount in _find(config.mounts, destination=_CONTROL_GROUPS_INSIDE, type="cgroup"):
        _delegate_control_groups(config, mount, owner)


def _delegate_control_groups(config: Configuration, mount: dict[str, object], owner: Owner) -> None:
    """Let a server make control groups below its own.

    :param mount: the mount of the control groups
    """
    if _is_unified():
        _delegate_unified(mount, "an engine")
        return
    # Most servers run no containers, so most starts do not wait for this import.
    from novadocker.runtime import nesting

    group = _control_group(config)
    with open(_MOUNTS, "rb") as source:
        names = nesting.limiting(_CONTROL_GROUPS, nesting.hierarchies(source.read()))
    nesting.delegate(_CONTROL_GROUPS, names, group, owner)
    place = config.mounts.index(mount)
    for found in config.mounts[:]:
        if _is_at_control_groups(found):
            config.mounts.remove(found)
    config.mounts[place:place] = nesting.mounts(_CONTROL_GROUPS, names, group)


def _nests(config: Configuration) -> bool:
    """Return True if the server has its own ids and control groups, and a writable /proc/sys."""
    # The driver has it writable only for servers that run containers in a user namespace.
    return (
        _has_own_groups(config)
        and bool(_find(config.namespaces, type="user"))
        and not config.linux.get("readonlyPaths")
    )


def _has_own_groups(config: Configuration) -> bool:
    return any(not space.get("path") for space in _find(config.namespaces, type="cgroup"))


def _is_at_control_groups(mount: dict[str, object]) -> bool:
    return f"{mount.get('destination')}/".startswith(f"{_CONTROL_GROUPS_INSIDE}/")


def _is_unified() -> bool:
    return _exists(f"{_CONTROL_GROUPS}/cgroup.controllers")


def _delegate_unified(mount: dict[str, object], program: str) -> None:
    """Make the server's control group of v2 writable.

    runc then gives it to the server's root.

    :raises Fault: the server could change its limits
    """
    if not _delegates():
        raise Fault(
            f"{program} in a server needs /sys/fs/cgroup on the host to be mounted with nsdelegate"
        )
    _set_writable(mount)


def _set_writable(mount: dict[str, object]) -> None:
    options = mount.get("options")
    if isinstance(options, list):
        mount["options"] = ["rw" if option == "ro" else option for option in options]


def _control_group(config: Configuration) -> str:
    """Return the path of the container's control group in each hierarchy."""
    group = config.linux.get("cgroupsPath")
    if not isinstance(group, str):
        raise Fault("the container has no control group in its configuration")
    if group.count(":") == 2:
        parent, prefix, name = group.split(":")
        group = f"/{parent}/{prefix}-{name}.scope"
    return group


def _run_of_systemd(config: Configuration) -> dict[str, object] | None:
    """Return the mount at /run of a container whose first process is systemd; None for others."""
    # Only the driver can request a tmpfs at /run, and it does so only for systemd.
    found = _find(config.mounts, destination="/run", type="tmpfs")
    return found[0] if found else None


def _leave_out_volumes(config: Configuration) -> None:
    """Mount the control groups where the image has volumes in their place.

    Images for ``docker run --volume /sys/fs/cgroup:/sys/fs/cgroup`` have such volumes. systemd does
    not boot with them.
    """
    for mount in config.mounts[:]:
        if mount.get("type") == "bind" and _is_at_control_groups(mount):
            place = config.mounts.index(mount)
            config.mounts.remove(mount)
            if not _find(config.mounts, destination=_CONTROL_GROUPS_INSIDE):
                groups: dict[str, object] = {
                    "destination": _CONTROL_GROUPS_INSIDE,
                    "type": "cgroup",
                    "source": "cgroup",
                    "options": ["ro", "nosuid", "noexec", "nodev"],
                }
                config.mounts.insert(place, groups)


def mount_tmp(config: Configuration, root: Tree) -> None:
    """Mount a tmpfs at /tmp if the image's systemd would mount one, which takes privileges.

    Its size is half of the container's memory, as with ``tmp.mount`` on a machine of that size.
    """
    run = _run_of_systemd(config)
    memory = _memory_limit(config)
    if run is None or memory is None or not _wants_tmp(root):
        return
    for volume in _find(config.mounts, destination="/tmp", type="bind"):
        config.mounts.remove(volume)
    size = f"size={memory // 2}"
    tmp: dict[str, object] = {
        "destination": "/tmp",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "nodev", "strictatime", "mode=1777", size, "nr_inodes=1m"],
    }
    # Mounts below /tmp follow the one at /run, because the engine sorts mounts by depth.
    config.mounts.insert(config.mounts.index(run), tmp)


def mount_generator(config: Configuration, mapped: bool) -> None:
    """Mount the generator that tells systemd what a server with its capabilities can't start.

    :param mapped: True if the server has a user namespace
    """
    if _run_of_systemd(config) is None:
        return
    name = "systemd-generator"
    if "CAP_SYS_ADMIN" in _bounding_set(config):
        if not mapped:
            return
        name = "systemd-mount-generator"
    # runc mounts in this order, so the generator comes after the tmpfs at /run.
    config.mounts.append(
        {
            "destination": "/run/systemd/system-generators/novadocker",
            "type": "bind",
            "source": f"{__file__.rpartition('/')[0]}/{name}",
            "options": ["bind", "ro", "nosuid", "nodev"],
        }
    )


def _memory_limit(config: Configuration) -> int | None:
    resources = config.linux.get("resources")
    memory = resources.get("memory") if isinstance(resources, dict) else None
    limit = memory.get("limit") if isinstance(memory, dict) else None
    return limit if isinstance(limit, int) and limit > 0 else None


def _wants_tmp(root: Tree) -> bool:
    """Return True if systemd in a container starts ``tmp.mount`` at its boot (systemd.unit(5))."""
    try:
        return _is_unit(root, "tmp.mount") and _is_unit(root, "local-fs.target.wants/tmp.mount")
    except (Fault, OSError):
        # The tenant's links and files must not keep the server from starting.
        return False


def _is_unit(root: Tree, name: str) -> bool:
    """Return True if the first file of this name that exists is not one that masks a unit."""
    for folder in _UNIT_FOLDERS:
        nodes = root.locate(f"{folder}/{name}")
        try:
            node = nodes[-1]
            # The image may lack the device node, which the engine creates later.
            if node.path == "/dev/null":
                return False
            if node.exists:
                return node.is_file and posix.fstat(node.descriptor).st_size > 0
        finally:
            root.release(nodes)
    return False


def leave_etc_files(config: Configuration, container_id: str) -> None:
    """Remove the engine's mounts of its own files for /etc.

    Programs can't replace a mounted file by renaming, and the engine writes its files anew at each
    start.
    """
    for name in ("hostname", "hosts", "resolv.conf"):
        for mount in _find(config.mounts, destination=f"/etc/{name}", type="bind"):
            # A volume of the image at this path stays.
            if str(mount.get("source")).endswith(f"/{container_id}/{name}"):
                config.mounts.remove(mount)


def set_hostname(config: Configuration, root: Tree) -> None:
    """Set the host name that is in the container's /etc/hostname, as a boot does.

    The name of the container's creation applies if the file has no valid name.
    """
    name = _read_hostname(root)
    # runc sets a host name only in a UTS namespace of the container's own.
    if name and "hostname" in config.content:
        config.content["hostname"] = name


def _read_hostname(root: Tree) -> str:
    """Return the name in a hostname(5); empty if there is no valid one."""
    try:
        nodes = root.locate("/etc/hostname")
        content = tree.read(nodes[-1], LARGEST_FILE) if nodes[-1].is_file else None
        root.release(nodes)
    except (Fault, OSError):
        # The tenant's links and files must not keep the server from starting.
        return ""
    for line in (content or b"").split(b"\n"):
        name = line.strip()
        if name and not name.startswith(b"#"):
            valid = len(name) <= _LONGEST_HOSTNAME and _HOSTNAME.issuperset(name)
            return name.decode() if valid else ""
    return ""


def set_terminal_size(config: Configuration) -> None:
    """Set the size of the first process's terminal, which would have 0 rows and 0 columns.

    The engine could set the size only after the start of the process, which would get SIGWINCH.
    """
    if config.process.get("terminal") is True:
        config.process["consoleSize"] = {"height": _ROWS, "width": _COLUMNS}


def _find(items: list[dict[str, object]], **members: str) -> list[dict[str, object]]:
    """Return the objects that have all these members."""
    return [
        item for item in items if all(item.get(name) == value for name, value in members.items())
    ]


def _delegates() -> bool:
    """Return True if the host mounts its control groups with nsdelegate."""
    with open(_MOUNTS, "rb") as source:
        for line in source:
            _, point, kind, options, *_ = line.split(b" ")
            if (point, kind) == (b"/sys/fs/cgroup", b"cgroup2") and b"nsdelegate" in options.split(
                b","
            ):
                return True
    return False


def check_terminal(state: str, container_id: str) -> None:
    """Refuse to start if the engine has closed its end of the input of the container's terminal.

    Engines before 28 do so at the first start of a container that ended while the engine did not
    run, because they use that container's closed streams again. containerd then hangs the terminal
    up, which kills the first process or leaves it without a terminal. After a failed start the
    engine has new streams.

    :param state: directory of runc's state
    :raises Fault: the engine has closed it
    """
    if not state:
        return
    # With userns-remap the engine adds ids to the names of these directories.
    folders = _expand([state.rpartition("/runtime-")[0] or state])
    folders = _expand([f"{folder}/containerd" for folder in folders])
    folders = _expand([f"{folder}/{container_id}" for folder in folders])
    # Docker Engine 20.10 names the pipe "init-stdin", Engine 26 names it after the container.
    names = ("init", container_id)
    for path in [f"{folder}/{name}-stdin" for folder in folders for name in names]:
        try:
            descriptor = posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK)
        except FileNotFoundError:
            continue
        # A read finds the end of the pipe only if no process has it open, or is about to open it,
        # for writing.
        try:
            is_pipe = _stat.S_ISFIFO(posix.fstat(descriptor).st_mode)
            if is_pipe and not posix.read(descriptor, 1):
                raise Fault(f"the engine has closed the terminal of container {container_id}")
        except BlockingIOError:
            pass
        finally:
            posix.close(descriptor)


def _expand(prefixes: list[str]) -> list[str]:
    """Return the paths that begin with one of these prefixes and have no further component."""
    found = []
    for prefix in prefixes:
        parent, _, begin = prefix.rpartition("/")
        try:
            names = posix.listdir(parent or "/")
        except (FileNotFoundError, NotADirectoryError):
            continue
        found += [f"{parent}/{name}" for name in names if name.startswith(begin)]
    return found


class Files:
    """The directory with the driver's files for a container.

    :param descriptor: a descriptor of the directory
    """

    def __init__(self, container_id: str, descriptor: int) -> None:
        self._id = container_id
        self._descriptor = descriptor
        self._names = {folder: self._list(folder) for folder in (".", "etc", ".ssh")}
        self.etc = {
            name: self._read(f"etc/{name}", record.LARGEST_ETC_FILE) for name in self._names["etc"]
        }
        self.login = (
            self._read("login", record.LARGEST_LOGIN) if "login" in self._names["."] else b""
        )
        self.keys = (
            self._read(".ssh/authorized_keys", record.LARGEST_KEYS) if self._names[".ssh"] else b""
        )

    def _list(self, folder: str) -> list[str]:
        try:
            found = posix.open(folder, _OWN_FILE | posix.O_DIRECTORY, dir_fd=self._descriptor)
        except FileNotFoundError:
            return []
        try:
            return posix.listdir(found)
        finally:
            posix.close(found)

    def _read(self, name: str, limit: int) -> bytes:
        return _read_own(name, self._descriptor, limit, f"the file {name} of container {self._id}")

    def remove(self, folder: int, name: str) -> None:
        """Delete the files, because they are for one start only.

        :param folder: a descriptor of the directory that has this one under ``name``
        """
        for parent in ("etc", ".ssh"):
            for child in self._names[parent]:
                posix.unlink(f"{parent}/{child}", dir_fd=self._descriptor)
        for child in self._names["."]:
            if child == "login":
                posix.unlink(child, dir_fd=self._descriptor)
            else:
                posix.rmdir(child, dir_fd=self._descriptor)
        posix.rmdir(name, dir_fd=folder)


def put_etc(root: Tree, files: Files, container_id: str, owner: Owner) -> None:
    """Write the driver's files into the container's /etc."""
    if not files.etc:
        return
    etc = root.make_folder("/etc")
    try:
        for name, content in files.etc.items():
            _put_etc_file(root, etc, name, content, owner)
    except OSError as error:
        raise Fault(
            f"the files for /etc of container {container_id} can't be copied: {error.strerror}"
        ) from error
    except KeyError as error:
        raise Fault(f"the record of container {container_id} has an unknown file") from error
    machine_id = files.etc.get("machine-id")
    if machine_id is None:
        return
    folder = root.locate("/var/lib/dbus")[-1]
    if not folder.is_folder:
        return
    try:
        mode = posix.stat("machine-id", dir_fd=folder.descriptor, follow_symlinks=False).st_mode
        if _stat.S_ISREG(mode):
            tree.replace(folder, "machine-id", machine_id, record.ETC_FILES["machine-id"], owner)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Fault(f"the machine id of container {container_id} can't be written") from error


def _put_etc_file(root: Tree, etc: tree.Node, name: str, content: bytes, owner: Owner) -> None:
    mode = record.ETC_FILES[name]
    try:
        tree.replace(etc, name, content, mode, owner)
    except OSError as error:
        *_, present = root.locate(f"/etc/{name}")
        if error.errno != errno.ENOSPC or present.path != f"/etc/{name}" or not present.is_file:
            raise
        # The tenant may have filled the volume that the server boots from. The present file has a
        # block already, and a server with a full disk must start on another host, too.
        tree.overwrite(present, content)


def put_login(root: Tree, files: Files, config: Configuration) -> None:
    """Set the password of the login user and write the SSH keys.

    The file ``login`` has the user's name and, if there is a password, its hash and the day of its
    change (shadow(5)). If the image has no /etc/passwd, only root can be the user.
    """
    if not files.login:
        return
    # Only first starts wait for this import.
    from novadocker.runtime import accounts

    user, *password = files.login.decode().split()
    passwd = _read_accounts(root.locate("/etc/passwd")[-1])
    fields = accounts.find_entry(passwd, user)
    if password and accounts.shadowed(passwd, user):
        put_password(root, user, password[0], int(password[1]), config.owner(0, 0))
    if not files.keys:
        return
    if fields is None:
        if user != "root":
            raise Fault(f"the image has no user {user} (image property os_admin_user)")
        fields = [b"", b"0", b"0", b"", b"/root"]
    try:
        uid, gid, home = accounts.read_identity(fields)
    except ValueError as error:
        raise Fault(f"the image's /etc/passwd has a malformed entry of the user {user}") from error
    put_keys(root, user, home.decode(errors="surrogateescape"), files.keys, config.owner(uid, gid))


def put_password(root: Tree, user: str, password_hash: str, day: int, owner: Owner) -> None:
    """Set a password in the container's /etc/shadow, which keeps its owner and permissions.

    :param owner: owner of a new file
    """
    from novadocker.runtime import accounts

    *above, shadow = root.locate("/etc/shadow")
    content = accounts.set_password(_read_accounts(shadow), user, password_hash, day)
    try:
        if shadow.is_file:
            tree.overwrite(shadow, content)
        elif not above or shadow.is_folder:
            raise Fault("the /etc/shadow in the image is not a regular file")
        elif above[-1].is_folder:
            tree.replace(above[-1], shadow.name, content, 0o600, owner)
    except OSError as error:
        raise Fault(f"the /etc/shadow in the image can't be written: {error.strerror}") from error


def put_keys(root: Tree, user: str, home: str, keys: bytes, owner: Owner) -> None:
    """Add SSH keys to those of the image's user.

    :param home: the user's home directory
    """
    root.make_folder(home, owner=owner)
    root.make_folder(f"{home}/.ssh", 0o700, owner)
    fault = f"the authorized_keys of the user {user} can't be written"
    try:
        *above, file = root.locate(f"{home}/.ssh/authorized_keys")
        if not above or not above[-1].is_folder:
            raise Fault(fault)
        present = b""
        if file.is_file:
            found = tree.read(file, LARGEST_FILE)
            if found is None:
                raise Fault("the authorized_keys in the image is too large")
            present = found
            # The image may be a snapshot of a server with the same keys.
            if keys.rstrip(b"\n") in present:
                return
            if present and not present.endswith(b"\n"):
                present += b"\n"
        tree.replace(above[-1], file.name, present + keys, 0o600, owner)
    except OSError as error:
        raise Fault(f"{fault}: {error.strerror}") from error


def _read_accounts(node: tree.Node) -> bytes:
    """Return the content of passwd(5) or shadow(5); nothing if it is not a regular file."""
    if not node.is_file:
        return b""
    try:
        content = tree.read(node, LARGEST_FILE)
    except OSError as error:
        raise Fault("the /etc/passwd or /etc/shadow in the image is unreadable") from error
    if content is None:
        raise Fault("the /etc/passwd or /etc/shadow in the image is too large")
    return content


def _read_own(path: str, folder: int, limit: int, what: str) -> bytes:
    """Return the content of a file of the driver, which only root may have written.

    :param folder: a descriptor of the directory from which the path leads
    :raises FileNotFoundError: the file does not exist
    """
    descriptor = posix.open(path, _OWN_FILE, dir_fd=folder)
    try:
        status = posix.fstat(descriptor)
        if not _stat.S_ISREG(status.st_mode) or not _is_own(status):
            raise Fault(f"{what} is not a file that only root can write")
        content = tree.read_all(descriptor, limit)
    finally:
        posix.close(descriptor)
    if content is None:
        raise Fault(f"{what} has more than {limit} bytes")
    return content


def _is_own(status: posix.stat_result) -> bool:
    # The shim's user is root, except in tests.
    return status.st_uid == posix.geteuid() and not status.st_mode & (_stat.S_IWGRP | _stat.S_IWOTH)


def _open_own_folder(path: str, folder: int | None = None) -> int:
    """Open a directory that only root can change.

    :raises FileNotFoundError: the directory does not exist
    """
    descriptor = posix.open(path, _OWN_FILE | posix.O_DIRECTORY, dir_fd=folder)
    if not _is_own(posix.fstat(descriptor)):
        raise Fault(f"{path} is not a directory that only root can write")
    return descriptor


def read_record(container_id: str, folder: int) -> record.Record:
    """Return the record of a container."""
    try:
        what = f"the record of container {container_id}"
        content = _read_own(container_id, folder, record.LARGEST_RECORD, what)
    except FileNotFoundError:
        content = b""
    if not content:
        raise _no_record(container_id)
    try:
        return record.parse(content)
    except ValueError as error:
        raise Fault(f"the record of container {container_id} {error}") from error


def _no_record(container_id: str) -> Fault:
    return Fault(
        f"no network namespace is recorded for container {container_id}; start the server through "
        "Nova"
    )


def prepare(call: Call) -> record.Record:
    """Prepare a container. Return its record.

    If the record has ids or a root, runc must run in the mount namespace of this process.

    :raises Fault: the container must not be created
    """
    container_id = call.container_id
    if not record.is_container_id(container_id):
        raise Fault("the container id is not an id of the engine")
    if call.command == "create":
        check_terminal(call.state, container_id)
    try:
        folder = _open_own_folder(record.FOLDER)
    except FileNotFoundError:
        raise _no_record(container_id) from None
    additions = read_record(container_id, folder)
    forget_restored(container_id, folder)
    config = Configuration(f"{call.bundle}/config.json", container_id)
    folders = mount_root(config, additions.root) if additions.root is not None else []
    join_namespaces(config, container_id, additions.namespaces)
    let_systemd_manage(config)
    leave_etc_files(config, container_id)
    set_terminal_size(config)
    config.annotations[_CRIU_ANNOTATION] = f"{__file__.rpartition('/')[0]}/criu.conf"
    owner = config.owner(0, 0)
    root = Tree(config.root, config.volumes, owner)
    make_folders(root, folders)
    name = f"{container_id}.files"
    files = _open_files(container_id, folder, name)
    if files is not None:
        put_etc(root, files, container_id, owner)
        put_login(root, files, config)
    set_hostname(config, root)
    mount_tmp(config, root)
    mapped = additions.ids is not None or bool(_find(config.namespaces, type="user"))
    mount_generator(config, mapped)
    if additions.devices is not None:
        add_devices(config, additions.devices, additions.disks)
    if additions.restore is not None:
        check_restorable(config, container_id, additions)
        # runc looks for the sources of mounts before it makes the control groups.
        make_systemd_group(config)
    if additions.ids is None:
        check_user_namespace(config)
        let_engine_manage(config, owner)
        config.write()
    else:
        user = additions.namespaces["user"]
        add_user_namespace(config, container_id, user, additions.ids)
        # Nothing removes the control groups of a start that is refused.
        map_owners(config, user, additions.ids, on_volume=additions.root is not None)
        let_engine_manage(config, config.owner(0, 0))
        delegate_systemd_group(config, additions.ids[0])
        keep_flags(config)
        config.write()
    if files is not None:
        files.remove(folder, name)
    return additions


def forget_restored(container_id: str, folder: int) -> None:
    """Delete the mark of a restored container that was never started.

    With it, the next start would do nothing.
    """
    try:  # noqa: SIM105
        posix.unlink(f"{container_id}{record.RESTORED}", dir_fd=folder)
    except FileNotFoundError:
        pass


def check_restorable(config: Configuration, container_id: str, additions: record.Record) -> None:
    """Refuse images that are not this container's, and a container that CRIU can't restore.

    :raises Fault: it must not be restored
    """
    if additions.restore is not None and additions.restore.container_id != container_id:
        raise Fault(f"the record of container {container_id} names the memory of another container")
    if additions.root is not None or _find(config.namespaces, type="user"):
        raise Fault("a server on a volume or in a user namespace can't be restored")


def mount_root(config: Configuration, device: record.BlockDevice) -> list[str]:
    """Make the file system of a volume the container's root directory.

    The anonymous volumes of the image are left out, so all data of the server is on the volume.

    :returns: the paths of the anonymous volumes
    :raises Fault: the device is not on the host any more, or its file system cannot be mounted
    """
    # Other starts do not wait for this import.
    from novadocker.runtime import root_volume

    _check_source(device)
    try:
        config.root = root_volume.enter(device.source)
    except OSError as error:
        raise Fault(
            f"the file system of the volume that the server boots from can't be mounted: "
            f"{error.strerror}"
        ) from error
    limit_device(config, device)
    left_out = []
    for destination, source in config.volumes.items():
        if root_volume.is_engine_volume(source):
            left_out.append(destination)
            for mount in _find(config.mounts, destination=destination, type="bind"):
                config.mounts.remove(mount)
    return left_out


def make_folders(root: Tree, paths: list[str]) -> None:
    """Create the directories that the engine would create for anonymous volumes of the image."""
    for path in paths:
        try:  # noqa: SIM105
            root.make_folder(path)
        except Fault:
            # The tenant's links and files must not keep the server from starting.
            pass


def map_owners(
    config: Configuration, user_namespace: str, ids: tuple[int, int], *, on_volume: bool = False
) -> None:
    """Map the owners of the container's files and devices.

    :param user_namespace: path of the user namespace
    :param ids: first id on the host and number of ids
    :param on_volume: True if ``mount_root`` has mounted the root directory
    """
    # Other starts do not wait for this import.
    from novadocker.runtime import idmapped

    first, count = ids
    own = [f"{record.CONFIG_DRIVES}/"]
    layers = None if on_volume else idmapped.Layers(config.root)
    if layers is not None:
        own.append(f"{layers.folder.rpartition('/')[0]}/volumes/")
    # A config drive is mounted at two places.
    volumes = {path for path in config.volumes.values() if path.startswith(tuple(own))}
    if layers is None:
        from novadocker.runtime import root_volume

        root_volume.map_owners(sorted(volumes), user_namespace, first)
    else:
        idmapped.enter(layers, config.root, sorted(volumes), user_namespace, first)
        config.root = idmapped.PLACE
    devices = config.take_devices()
    for number, device in enumerate(devices):
        # A device's own owner may be a user that the namespace does not map.
        owner = [first + id_ if id_ < count else first for id_ in (device.uid, device.gid)]
        node = posix.makedev(device.major, device.minor)
        source = idmapped.make_node(number, device.mode, node, owner)
        config.mounts.append(
            {"destination": device.path, "type": "bind", "source": source, "options": ["bind"]}
        )


def limit_device(config: Configuration, device: record.BlockDevice) -> None:
    """Limit how fast the container reads and writes a device."""
    for name, rate in device.rates.items():
        if rate:
            limit: dict[str, object] = {"major": device.major, "minor": device.minor, "rate": rate}
            config.device_limits(record.RATES[name]).append(limit)


def add_devices(config: Configuration, devices: list[record.BlockDevice], disks: str) -> None:
    """Add the volumes of the server as device nodes, with links to them.

    :param disks: directory of the host with the server's links to its disks
    :raises Fault: a device is not on the host any more, or the container has a device at its path
    """
    nodes = config.device_nodes
    taken = [node.get("path") for node in nodes]
    for device in devices:
        if device.path in taken:
            raise Fault(f"the server has another device at {device.path}")
        _check_source(device)
        nodes.append(
            {
                "path": device.path,
                "type": "b",
                "major": device.major,
                "minor": device.minor,
                "fileMode": 0o660,
                "uid": 0,
                "gid": 0,
            }
        )
        config.device_rules.append(
            {
                "allow": True,
                "type": "b",
                "major": device.major,
                "minor": device.minor,
                "access": "rw" if device.writable else "r",
            }
        )
        limit_device(config, device)
    # The driver leaves these rules out when it detaches a volume from a running server.
    config.annotations[record.DEVICES_ANNOTATION] = " ".join(
        f"{device.major}:{device.minor}" for device in devices
    )
    # A driver that is older than the shim may have made no directories for the server.
    if _is_directory(f"{disks}/by-id"):
        _mount_links(config, f"{disks}/by-id", "/dev/disk/by-id")
    # A mount within /sys would keep the server's containers from a /sys of their own: the kernel
    # mounts in a user namespace only what is visible outside.
    if "CAP_SYS_ADMIN" not in _bounding_set(config) and _is_directory(f"{disks}/block"):
        _link_block_devices(nodes, f"{disks}/block")
        _mount_links(config, f"{disks}/block", "/sys/block")


def _is_directory(path: str) -> bool:
    try:
        return _stat.S_ISDIR(posix.stat(path).st_mode)
    except FileNotFoundError:
        return False


def _mount_links(config: Configuration, source: str, destination: str) -> None:
    config.mounts.append(
        {
            "destination": destination,
            "type": "bind",
            "source": source,
            "options": ["bind", "ro", "nosuid", "noexec", "nodev"],
        }
    )


def _link_block_devices(nodes: list[dict[str, object]], folder: str) -> None:
    """Make the block devices of a container the only ones in its /sys/block.

    lsblk(8) lists what is there. The driver adds and removes the links of volumes while the
    container runs.

    :param folder: directory of the host
    """
    wanted = {
        device.path.rpartition("/")[2]: record.block_link(device.major, device.minor)
        for device in map(Device, nodes)
        if _stat.S_ISBLK(device.mode)
    }
    for name in posix.listdir(folder):
        posix.unlink(f"{folder}/{name}")
    for name, target in wanted.items():
        posix.symlink(target, f"{folder}/{name}")


def _check_source(device: record.BlockDevice) -> None:
    """Check that a volume is the device on the host that the driver has connected.

    :raises Fault: it is not
    """
    try:
        found = posix.stat(device.source)
    except OSError:
        found = None
    number = posix.makedev(device.major, device.minor)
    if found is None or not _stat.S_ISBLK(found.st_mode) or found.st_rdev != number:
        raise Fault(
            f"the volume at {device.path} is not connected to this host any more; reboot the "
            "server through Nova"
        )


def keep_flags(config: Configuration) -> None:
    """Give read-only bind mounts the flags of their sources, which no user namespace may remove.

    runc 1.1 would remount them without.
    """
    for mount in _find(config.mounts, type="bind"):
        options = mount.get("options")
        if isinstance(options, list) and "ro" in options:
            flags = posix.statvfs(str(mount["source"])).f_flag
            options += [name for name, flag in _KEPT_FLAGS if flags & flag and name not in options]


def become_runc(arguments: list[str]) -> None:
    """Replace this program by runc, and tell the calling script so.

    :raises Fault: runc does not exist
    """
    drop_limits()
    posix.write(_ANSWER, b"runc\n")
    posix.set_inheritable(_ANSWER, False)
    for folder in posix.environ.get(b"PATH", b"/usr/sbin:/usr/bin:/sbin:/bin").split(b":"):
        try:  # noqa: SIM105
            posix.execv(folder + b"/runc", ["runc", *arguments])
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            pass
    raise Fault("there is no program runc in the engine's PATH")


def drop_limits() -> None:
    """Undo the limits of this program and the signals that Python ignores.

    They are not the container's, which would inherit them.
    """
    import _signal  # type: ignore[import-not-found]
    import resource

    for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (hard, hard))
    for signal in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(signal, _signal.SIG_DFL)


def become_restored(call: Call, restore: record.Restore, arguments: list[str]) -> None:
    """Restore a container by runc instead of creating it, and tell the calling script so.

    :raises Fault: the processes can't be restored
    """
    # Other starts do not wait for this import.
    from novadocker.runtime import restoration

    folder = _open_own_folder(record.FOLDER)
    content = _read_own(call.container_id, folder, record.LARGEST_RECORD, "the record")
    drop_limits()
    posix.set_inheritable(_ANSWER, False)
    restoration.restore(call.container_id, restore, content, folder, arguments)
    posix.write(_ANSWER, b"runc\n")


def _open_files(container_id: str, folder: int, name: str) -> Files | None:
    """Return the driver's files for the next start of a container; None without any."""
    try:
        return Files(container_id, _open_own_folder(name, folder))
    except FileNotFoundError:
        return None


def main() -> None:
    """Prepare the container of a call of runc, and exit with status 0, or 3 after a logged fault.

    If the container needs a mount namespace of runc's own, become runc instead of exiting. If its
    processes are to be restored, run runc before exiting.

    The engine reports the last error in runc's log, so a fault is written to the log, too.
    """
    posix.umask(0o022)
    call = Call(sys.argv[1:])
    status = 0
    try:
        additions = prepare(call)
        if additions.restore is not None:
            become_restored(call, additions.restore, sys.argv[1:])
        elif additions.ids is not None or additions.root is not None:
            become_runc(sys.argv[1:])
    except (Fault, OSError) as error:
        reason = str(error)
        if isinstance(error, OSError):
            reason = f"{error.strerror}: {tree.shown(str(error.filename))}"
        message = f"novadocker: {reason}"
        if call.log:
            with open(call.log, "ab") as log:
                log.write(documents.serialize({"level": "error", "msg": message}) + b"\n")
        posix.write(2, f"{message}\n".encode(errors="backslashreplace"))
        status = _FAILURE_STATUS
    # Python's own end would take a tenth of the whole program.
    posix._exit(status)


_OPTIONS_WITH_VALUE = frozenset(
    ["--root", "--log", "--log-format", "--criu", "--rootless", "-b", "--bundle"]
)
