# SPDX-License-Identifier: Apache-2.0
"""The search for objects that deleted instances left on the host, once a minute."""

import logging
import os
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pyroute2 import IPRoute, NetlinkError

from novadocker import engine_paths, naming
from novadocker.exporter import probes
from novadocker.exporter.identity import Identities
from novadocker.linux import ovsdb
from novadocker.linux.threads import Repeated
from novadocker.recovery import dataroot
from novadocker.state_files import namespaces

LOG = logging.getLogger(__name__)

_EVERY_SECONDS = 60.0
_INTERFACES = ovsdb.Select("Interface", ("name", "external_ids", "error"))


@dataclass(frozen=True)
class Found:
    """The result of a search, without the kinds that could not be read.

    :ivar leaked: number of left objects by kind
    :ivar unused_images: number of images in Nova's cache that no container uses
    """

    leaked: dict[str, int] = field(default_factory=dict)
    unused_images: int | None = None


@dataclass(frozen=True)
class Images:
    """The images in the engine's data root, by image id (``sha256:...``).

    :ivar stored: ids of all images
    :ivar named: id of the image by name; an image may have several names
    :ivar parents: id of the parent, for images that were built on this host from another image
    """

    stored: Set[str]
    named: dict[str, str]
    parents: dict[str, str]

    def nobodys(self, used: Set[str]) -> int:
        """Return the number of images that neither a name nor a container refers to.

        An image is also referred to if one of its descendants is.
        """
        left = set(self.stored)
        waiting = [*self.named.values(), *used]
        while waiting:
            image = waiting.pop()
            left.discard(image)
            if parent := self.parents.get(image):
                waiting.append(parent)
        return len(left)

    def unused(self, used: Set[str], prefix: str) -> int:
        """Return the number of names with the prefix whose image no container uses."""
        return sum(
            name.startswith(prefix) and image not in used for name, image in self.named.items()
        )


class Search:
    """The search in a thread of its own; ``found`` may be called from any thread.

    :param run: the directory /run
    :param data_root: data root of the engine
    :param switch: directory of the sockets of Open vSwitch
    """

    def __init__(self, run: Path, data_root: Path, switch: Path) -> None:
        self._run = run
        self._data_root = data_root
        self._switch = switch
        self._identities = Identities(engine_paths.containers(data_root))
        self._repeated = Repeated("leaks", self._update, _EVERY_SECONDS)
        self._found = Found()

    def start(self) -> None:
        """Start the thread."""
        self._repeated.start()

    def stop(self) -> None:
        """Stop the thread after the search that runs. Does not wait for it."""
        self._repeated.stop()

    def found(self) -> Found:
        """Return the result of the last search."""
        return self._found

    def look(self) -> Found:
        """Search for objects of instances that no longer exist, and return the result.

        :raises OSError: the containers or the network namespaces can't be listed
        """
        names = os.listdir(engine_paths.containers(self._data_root))
        self._identities.keep(set(names))
        servers = filter(None, map(self._identities.find, names))
        uuids = {server.labels["uuid"] for server in servers}
        leaked = {"namespace": len(namespaces.marked(self._run) - uuids)}
        unused = None
        veths: set[str] = set()
        with suppress(OSError):
            veths = veths_without_server(self._run / namespaces.NAMESPACES, uuids)
            leaked["veth"] = len(veths)
        with suppress(OSError, ValueError):
            leaked["port"] = ports_without_server(self._switch, uuids, veths)
        with suppress(OSError, dataroot.RecoveryError):
            images = read_images(self._data_root)
            used = set(_used_images(self._data_root, names))
            leaked["image"] = images.nobodys(used)
            unused = images.unused(used, naming.IMAGES)
        return Found(leaked, unused)

    def _update(self) -> None:
        try:
            self._found = self.look()
        except OSError as error:
            LOG.warning("Failed to search for objects of deleted servers: %s", error)
            self._found = Found()


def veths_without_server(folder: Path, uuids: Set[str]) -> set[str]:
    """Return the names of the host ends whose other end is in no instance's network namespace.

    :param folder: directory of the named network namespaces
    :param uuids: UUIDs of the instances that exist
    :raises OSError: the kernel refuses a request by netlink
    """
    numbers = set()
    try:
        with IPRoute() as netlink:
            for uuid in uuids:
                path = folder / naming.namespace_name(uuid)
                with suppress(FileNotFoundError), path.open() as file:
                    numbers.add(netlink.get_netnsid(fd=file.fileno())["nsid"])
            links = {link.get_attr("IFLA_IFNAME"): link for link in netlink.get_links()}
    except NetlinkError as error:
        raise OSError(error.code, "netlink") from error
    found = set()
    for name, link in links.items():
        if link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") != "veth":
            continue
        if naming.HOST_DEVICE.fullmatch(name) and link.get_attr("IFLA_LINK_NETNSID") not in numbers:
            found.add(name)
        host_device = naming.bridged_host_device(name)
        if host_device is not None and host_device not in links:
            found.add(name)
    return found


def ports_without_server(folder: Path, uuids: Set[str], veths: Set[str]) -> int:
    """Return the number of ports of Open vSwitch that belong to instances that do not exist.

    Ports of another compute driver are not counted, because their devices are not veth devices.

    :param folder: directory of the sockets of Open vSwitch
    :param uuids: UUIDs of the instances that exist
    :param veths: names of the host ends that deleted instances left
    :raises OSError: Open vSwitch's database does not answer
    :raises ValueError: the answer is malformed
    """
    (rows,) = ovsdb.select(probes.database(folder), _INTERFACES)
    try:
        return sum(_is_left(row, uuids, veths) for row in rows)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"Open vSwitch's database sent a malformed answer: {rows!r}") from error


def _is_left(row: ovsdb.Row, uuids: Set[str], veths: Set[str]) -> bool:
    server = dict(row["external_ids"][1]).get("vm-uuid")
    lost_device = isinstance(row["error"], str)
    return server is not None and server not in uuids and (lost_device or row["name"] in veths)


def read_images(data_root: Path) -> Images:
    """Return the images in an engine's data root.

    :raises OSError: a file can't be read
    :raises RecoveryError: the data root has no known storage driver, or is damaged
    """
    for driver in dataroot.DRIVERS:
        path = engine_paths.repositories(data_root, driver)
        if path.exists():
            break
    else:
        raise dataroot.RecoveryError(f"{data_root} has no repositories.json of a storage driver")
    configs = os.listdir(engine_paths.image_configs(data_root, driver))
    stored = {f"sha256:{name}" for name in configs}
    repositories = dataroot.read_json(path).get("Repositories") or {}
    try:
        named = {name: image for names in repositories.values() for name, image in names.items()}
    except AttributeError as error:
        raise dataroot.RecoveryError(f"{path} is damaged: {error}") from error
    return Images(stored, named, dict(_parents(engine_paths.image_metadata(data_root, driver))))


def _parents(folder: Path) -> Iterator[tuple[str, str]]:
    with suppress(FileNotFoundError):
        for name in os.listdir(folder):
            with suppress(FileNotFoundError):
                yield f"sha256:{name}", (folder / name / "parent").read_text().strip()


def _used_images(data_root: Path, containers: list[str]) -> Iterator[str]:
    for container in containers:
        # A container may be deleted meanwhile.
        with suppress(dataroot.RecoveryError, FileNotFoundError):
            config = dataroot.read_json(engine_paths.container_config(data_root, container))
            yield str(config.get("Image"))
