# SPDX-License-Identifier: Apache-2.0
"""Checks of the kernel's, the engine's and the switch's state of servers.

None of the checks calls the driver.
"""

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import docker
import psutil
from docker import errors

from novadocker import naming
from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from tests.engine import control_groups, daemons, networks
from tests.engine.servers import Server
from tests.engine.switch import Switch

_MIB = 1 << 20
LIMITS: Mapping[str, tuple[int, int, int, int | None]] = {
    "small": (100_000, 64 * _MIB, 4096, None),
    "disk": (100_000, 64 * _MIB, 4096, None),
    "large": (200_000, 128 * _MIB, 512, None),
    "capped": (50_000, 64 * _MIB, 4096, 12_800_000),
    "host": (100_000, 64 * _MIB, 4096, None),
}
"""By flavor of a walk: microseconds of CPU time per 100 ms, memory, processes, bytes a second."""
_MARKERS = ("marker", "data/marker")


class Survey:
    """Checks one engine and one switch.

    :param state: the session's state directory; its mark is the prefix of the servers' UUIDs
    :param instances: nova-compute's instances directory
    """

    def __init__(
        self, client: docker.APIClient, switch: Switch, state: Path, instances: Path
    ) -> None:
        self._client = client
        self._switch = switch
        self._state = state
        self._instances = instances
        self._images = self._image_ids()
        self._seen: set[str] = set()

    # -- one server ---------------------------------------------------------------------------

    def mark(self, server: Server) -> None:
        """Write the markers that must never be lost into a running server."""
        # The host's root cannot create files of the users in a user namespace.
        script = " && ".join(f"printf {server.uuid} >/{name}" for name in _MARKERS)
        call = self._client.exec_create(server.name, ["sh", "-c", script])["Id"]
        assert self._client.exec_start(call) == b""

    def check_running(self, server: Server, silent: bool = False) -> None:
        """Check a server with processes, which may be its own container or its rescue container.

        :param silent: True if the server is paused, so that it answers no packet
        """
        root = self._root(server)
        top = root / "rescue" if server.vm_state == "rescued" else root
        assert [(top / name).read_text() for name in _MARKERS] == [server.uuid] * 2
        pid = self._state_of(server)["Pid"]
        joined = os.stat(f"/proc/{pid}/ns/net").st_ino
        assert joined == os.stat(namespace.namespace_path(server.uuid)).st_ino
        self.check_devices(server, up=not silent)
        self.check_limits(server, pid, rates=not silent)

    def check_stopped(self, server: Server) -> None:
        """Check a server without a process: its data exists, and its network devices are down."""
        state = self._state_of(server)
        assert (state["Status"], state["Pid"]) in (("exited", 0), ("created", 0))
        self.check_devices(server, up=False)
        assert self._read_stopped(server) == [server.uuid] * 2

    def check_devices(self, server: Server, up: bool) -> None:
        """Check a server's network devices."""
        ports = server.network_info
        inside = {
            link["address"]: link
            for link in networks.ip(server.uuid, "address")
            if link["link_type"] == "ether"
        }
        assert set(inside) == {port["address"] for port in ports}
        outside = psutil.net_if_stats()
        for port in ports:
            addresses = {
                entry["local"]
                for entry in inside[port["address"]]["addr_info"]
                if entry["family"] == "inet"
            }
            assert addresses == {ip["address"] for ip in port.fixed_ips()}
            flags = outside[port["devname"]].flags.split(",")
            assert ("up" in flags) is up, (port["devname"], flags)

    def check_limits(self, server: Server, pid: int, rates: bool) -> None:
        """Check a running server's limits; ports that are down need no rate."""
        quota, memory, pids, rate = LIMITS[server.flavor]
        if control_groups.UNIFIED:
            assert control_groups.value(pid, "cpu.max", "cpu.max") == f"{quota} 100000"
        else:
            assert control_groups.value(pid, "cpu.cfs_quota_us", "") == str(quota)
        assert control_groups.value(pid, "memory.limit_in_bytes", "memory.max") == str(memory)
        assert control_groups.value(pid, "pids.max", "pids.max") == str(pids)
        for port in server.network_info if rate and rates else ():
            assert _rates(port["devname"]) == [rate]

    # -- all objects ----------------------------------------------------------------------------

    def check_nothing_else(
        self, expected: Iterable[Server], gone: Iterable[Server] = (), overlays: int = 0
    ) -> None:
        """Check that only the objects of these servers exist.

        :param gone: the servers whose containers were deleted behind Nova's back
        :param overlays: the maximum number of former rescues' volumes, which the engine cannot
            delete before its next start
        """
        there = list(expected)
        uuids = {server.uuid for server in there}
        lost = {server.uuid for server in gone}
        rescued = {server.uuid for server in there if server.vm_state == "rescued"}
        containers = self._client.containers(all=True)
        names = {container["Names"][0].lstrip("/") for container in containers}
        assert names == (
            {f"nova-{uuid}" for uuid in uuids - lost}
            | {f"nova-{uuid}-rescued" for uuid in rescued - lost}
        )
        ids = {container["Id"] for container in containers}
        self._seen |= ids
        unused = {"label": naming.LABEL_OVERLAY, "dangling": True}
        left = {volume["Name"] for volume in self._client.volumes(unused)["Volumes"] or ()}
        assert len(left) <= overlays
        volumes = {volume["Name"] for volume in self._client.volumes()["Volumes"] or ()}
        # Each container has its image's volume, and a rescue has another for the server's files.
        assert len(volumes - left) == len(containers) + len(rescued - lost)
        assert set(daemons.namespaces_of(self._state)) == {f"nova-{uuid}" for uuid in uuids}
        bound = {path.name for path in daemons.records_of(self._state)}
        assert ids <= bound, "a container has no runtime record"
        devices = {port["devname"]: port["id"] for server in there for port in server.network_info}
        ports = self._switch.external_ids()
        assert {name: ids["iface-id"] for name, ids in ports.items()} == devices
        assert _host_devices() == set(devices)
        if not there:
            assert bound == set()
            assert daemons.ids_of(self._state) == []
            files = {path.stem for path in runtime.FOLDER.glob("*.files")}
            assert files.isdisjoint(self._seen)
            assert self._image_ids() == self._images
            kept = {path.name for path in self._instances.iterdir()}
            assert kept <= {
                "locks",
                "loads",
                "rates",
                "novadocker-alive",
                "novadocker-incidents",
                "user-budgets",
            }, kept
            for folder in ("loads", "rates"):
                assert list((self._instances / folder).glob("*")) == []

    # -- state lookups --------------------------------------------------------------------------

    def exists(self, server: Server) -> bool:
        try:
            self._state_of(server)
        except errors.NotFound:
            return False
        return True

    def status(self, server: Server) -> str:
        return str(self._state_of(server)["Status"])

    def _state_of(self, server: Server) -> dict[str, Any]:
        found: dict[str, Any] = self._client.inspect_container(f"nova-{server.uuid}")["State"]
        return found

    def _root(self, server: Server) -> Path:
        state = self._state_of(server)
        assert state["Status"] in ("running", "paused"), state
        return Path(f"/proc/{state['Pid']}/root")

    def _read_stopped(self, server: Server) -> list[str]:
        """Return the markers in a stopped server's own container and volume, on overlay2."""
        name = server.name + ("-rescued" if server.vm_state == "rescued" else "")
        found = self._client.inspect_container(name)
        (volume,) = found["Mounts"]
        folders = found["GraphDriver"]["Data"]["UpperDir"], volume["Source"]
        return [
            Path(folder, Path(marker).name).read_text()
            for folder, marker in zip(folders, _MARKERS, strict=True)
        ]

    def _image_ids(self) -> set[str]:
        return {image["Id"] for image in self._client.images(all=True)}


def _host_devices() -> set[str]:
    """Return the names of all veth devices in the session's network namespace."""
    shown = subprocess.run(
        ["ip", "-json", "link", "show", "type", "veth"], check=True, capture_output=True, text=True
    ).stdout
    return {link["ifname"] for link in json.loads(shown or "[]")}


def _rates(device: str) -> list[int]:
    """Return the rates of the token buckets on a device."""
    shown = subprocess.run(
        ["tc", "-json", "qdisc", "show", "dev", device], check=True, capture_output=True, text=True
    ).stdout
    return [q["options"]["rate"] for q in json.loads(shown) if q["kind"] == "tbf"]
