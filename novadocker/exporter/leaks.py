# SPDX-License-Identifier: Apache-2.0
"""What is left on a host of servers that are gone, looked for once a minute."""

import logging
import os
import re
import threading
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from novadocker import naming
from novadocker.exporter.identity import Identities
from novadocker.exporter.probes import select
from novadocker.recovery import dataroot

LOG = logging.getLogger(__name__)

_EVERY_SECONDS = 60.0
_NAMESPACE = re.compile(naming.namespace_name("([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"))
# the host ends of ports (nics.host_device_name), and os-vif's pair of a port with a bridge between
_HOST_END = re.compile(r"(?:tap|nic)[0-9a-f-]{1,11}")
_BRIDGE_END = re.compile(r"qvo([0-9a-f-]{1,11})")
_INTERFACES = {
    "op": "select",
    "table": "Interface",
    "where": [],
    "columns": ["name", "external_ids", "error"],
}


@dataclass(frozen=True)
class Found:
    """What was found; what can't be asked is left out.

    :ivar leaked: how many there are, by kind
    :ivar unused_images: images of Nova's cache that no container has
    """

    leaked: dict[str, int] = field(default_factory=dict)
    unused_images: int | None = None


@dataclass(frozen=True)
class Images:
    """The engine's images by their digests, ``sha256:...``, as its data root has them.

    :ivar stored: all of them
    :ivar named: by name; some have many
    :ivar parents: of those that were made from another one on this host
    """

    stored: Set[str]
    named: dict[str, str]
    parents: dict[str, str]

    def nobodys(self, used: Set[str]) -> int:
        """Return how many have no name, no container, and no image above that has."""
        left = set(self.stored)
        waiting = [*self.named.values(), *used]
        while waiting:
            image = waiting.pop()
            left.discard(image)
            if parent := self.parents.get(image):
                waiting.append(parent)
        return len(left)

    def unused(self, used: Set[str], prefix: str) -> int:
        """Return how many names that begin so are of images that no container has."""
        return sum(
            name.startswith(prefix) and image not in used for name, image in self.named.items()
        )


class Search:
    """A thread that looks; ``found`` may be asked from others.

    :param namespaces: the folder of the named network namespaces
    :param data_root: the engine's
    :param switch: the folder with the sockets of Open vSwitch
    """

    def __init__(self, namespaces: Path, data_root: Path, switch: Path) -> None:
        self._namespaces = namespaces
        self._data_root = data_root
        self._switch = switch
        self._identities = Identities(data_root / "containers")
        self._stopped = threading.Event()
        self._found = Found()

    def start(self) -> None:
        """Begin to look."""
        # a daemon: nothing is left behind by one that is cut off
        threading.Thread(target=self._run, name="leaks", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def found(self) -> Found:
        """Return what was found the last time."""
        return self._found

    def look(self) -> Found:
        """Return what is left of servers that are gone."""
        names = os.listdir(self._data_root / "containers")
        self._identities.keep(set(names))
        servers = filter(None, map(self._identities.find, names))
        uuids = {server.labels["uuid"] for server in servers}
        leaked = {"namespace": len(namespaces(self._namespaces) - uuids)}
        unused = None
        veths: set[str] = set()
        with suppress(OSError):
            veths = veths_without_server(self._namespaces, uuids)
            leaked["veth"] = len(veths)
        with suppress(OSError, ValueError):
            leaked["port"] = ports_without_server(self._switch, uuids, veths)
        with suppress(OSError, dataroot.RecoveryError):
            images = read_images(self._data_root)
            used = set(_used_images(self._data_root / "containers", names))
            leaked["image"] = images.nobodys(used)
            unused = images.unused(used, naming.IMAGES)
        return Found(leaked, unused)

    def _run(self) -> None:
        while True:
            try:
                self._found = self.look()
            except OSError as error:
                LOG.warning("What is left of servers is not known: %s", error)
                self._found = Found()
            if self._stopped.wait(_EVERY_SECONDS):
                return


def namespaces(folder: Path) -> set[str]:
    """Return the servers, by UUID, that have a network namespace on this host."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return set()
    return {match[1] for name in names if (match := _NAMESPACE.fullmatch(name))}


def veths_without_server(folder: Path, uuids: Set[str]) -> set[str]:
    """Return the host ends of ports whose other end is in no server's network namespace.

    :param folder: of the named network namespaces
    :param uuids: of the servers that there are
    :raises OSError: the kernel does not tell
    """
    numbers = set()
    try:
        with IPRoute() as netlink:
            for uuid in namespaces(folder) & uuids:
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
        if _HOST_END.fullmatch(name) and link.get_attr("IFLA_LINK_NETNSID") not in numbers:
            found.add(name)
        if (match := _BRIDGE_END.fullmatch(name)) and f"tap{match[1]}" not in links:
            found.add(name)
    return found


def ports_without_server(folder: Path, uuids: Set[str], veths: Set[str]) -> int:
    """Return how many ports of Open vSwitch are of servers that are gone.

    Those of another driver's servers have a device that is no veth.

    :param folder: with the sockets of Open vSwitch
    :param uuids: of the servers that there are
    :param veths: the host ends that are left
    :raises OSError: it does not answer
    :raises ValueError: it answers something else
    """
    (rows,) = select(folder, _INTERFACES)
    try:
        return sum(_is_left(row, uuids, veths) for row in rows)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"the database answers {rows!r}") from error


def _is_left(row: dict[str, Any], uuids: Set[str], veths: Set[str]) -> bool:
    # RFC 7047: ["map", [[key, value], ...]], and a string or the empty ["set", []]
    server = dict(row["external_ids"][1]).get("vm-uuid")
    lost_device = isinstance(row["error"], str)
    return server is not None and server not in uuids and (lost_device or row["name"] in veths)


def read_images(data_root: Path) -> Images:
    """Return the images of an engine.

    :raises OSError: they can't be read
    :raises RecoveryError: that is no data root of a known kind, or damaged
    """
    for driver in dataroot.DRIVERS:
        folder = data_root / "image" / driver
        if (folder / "repositories.json").exists():
            break
    else:
        raise dataroot.RecoveryError(f"{data_root} has no list of images")
    stored = {f"sha256:{name}" for name in os.listdir(folder / "imagedb/content/sha256")}
    path = folder / "repositories.json"
    repositories = dataroot.read_json(path).get("Repositories") or {}
    try:
        named = {name: image for names in repositories.values() for name, image in names.items()}
    except AttributeError as error:
        raise dataroot.RecoveryError(f"{path} is damaged: {error}") from error
    return Images(stored, named, dict(_parents(folder / "imagedb/metadata/sha256")))


def _parents(folder: Path) -> Iterator[tuple[str, str]]:
    with suppress(FileNotFoundError):
        for name in os.listdir(folder):
            with suppress(FileNotFoundError):
                yield f"sha256:{name}", (folder / name / "parent").read_text().strip()


def _used_images(folder: Path, containers: list[str]) -> Iterator[str]:
    for container in containers:
        # one may be going just now
        with suppress(dataroot.RecoveryError, FileNotFoundError):
            yield str(dataroot.read_json(folder / container / "config.v2.json").get("Image"))
