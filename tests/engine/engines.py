# SPDX-License-Identifier: Apache-2.0
"""The tests' own Docker engines."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import docker
import psutil

from tests import CHECKOUT
from tests.engine import daemons

THIN_OPTIONS = ("dm.basesize=512M", "dm.loopdatasize=2G", "dm.loopmetadatasize=64M")
"""Options of the storage driver ``devicemapper``: a small pool in files."""

CONTAINERD_STORE = {"features": {"containerd-snapshotter": True}}
"""Configuration of an engine with containerd's image store."""

SHIM = CHECKOUT / "novadocker" / "runtime" / "novadocker-runtime"
_ANSWER_SECONDS = 5
_FIRST_WITHOUT_DEVICEMAPPER = 25
_CONTAINERD = """version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{folder}/containerd.sock"
"""


class OwnEngine:
    """An engine with all its files below one directory, which can die and restart.

    This class starts the engine's containerd, because an engine waits at most 15 s for its own.
    """

    def __init__(self, folder: Path, wrapper: Sequence[str] = (), **config: object) -> None:
        self.data_root = folder / "data" / "docker"
        self._folder = folder
        self.url = _write_config(folder, **config)
        containerd = folder / "containerd"
        self.containerd_socket = containerd / "containerd.sock"
        containerd.mkdir()
        (containerd / "config.toml").write_text(_CONTAINERD.format(folder=containerd))
        self._wrapper = wrapper
        self.start_all()

    def configure(self, **options: object) -> None:
        """Change options of daemon.json, which the next start reads; None removes an option."""
        path = self._folder / "daemon.json"
        changed = {**json.loads(path.read_text()), **options}
        kept = {name: value for name, value in changed.items() if value is not None}
        path.write_text(json.dumps(kept))

    def start_all(self) -> None:
        """Start the engine and its containerd, also after a power loss."""
        containerd = self._folder / "containerd"
        self._containerd = daemons.start(
            [*self._wrapper, "containerd", "--config", str(containerd / "config.toml")],
            self._folder / "log",
            lambda: _connects(self.containerd_socket),
        )
        self.start()

    def start(self) -> None:
        """Start the engine, also after it was killed."""
        (self._folder / "docker.pid").unlink(missing_ok=True)
        # containerd must see the engine's mounts, so both share a mount namespace.
        inside = ["nsenter", f"--target={self._containerd.pid}", "--mount"]
        self._process = daemons.start(
            [*inside, "dockerd", "--config-file", str(self._folder / "daemon.json")],
            self._folder / "log",
            lambda: _answers(self._folder / "docker.sock"),
        )

    @property
    def pid(self) -> int:
        """The engine's process id."""
        return self._process.pid

    def kill(self) -> None:
        """Kill the engine without any clean-up; its containers continue to run."""
        self._process.kill()
        self._process.wait()

    def lose_power(self) -> None:
        """Kill the engine, its containerd and all containers; delete their runtime state (/run)."""
        victims = daemons.kill_all(self._folder)
        self._process.wait()
        self._containerd.wait()
        psutil.wait_procs([psutil.Process(pid) for pid in victims if psutil.pid_exists(pid)], 60)
        for mount in reversed(daemons.mounts_below(self.data_root)):
            subprocess.run(["umount", mount], check=True)
        shutil.rmtree(self._folder / "exec")
        shutil.rmtree(self._folder / "containerd" / "state")

    def stop(self) -> None:
        """Stop the engine and its containerd."""
        daemons.stop(self._process)
        daemons.stop(self._containerd)


@contextmanager
def own_engine(
    folder: Path,
    storage_driver: str,
    filesystem: str = "",
    storage: Sequence[str] = (),
    live_restore: bool = True,
    disk_bytes: int = 1 << 30,
) -> Iterator[OwnEngine]:
    """Run an engine.

    :param filesystem: file system of the data root, in a file: ``btrfs``, or ``xfs`` with project
        quota; the default is the machine's
    :param storage: the storage driver's options
    :param disk_bytes: size of that file
    """
    data = folder / "data"
    data.mkdir(parents=True)
    if filesystem:
        with (folder / "disk").open("wb") as disk:
            disk.truncate(disk_bytes)
        subprocess.run([f"mkfs.{filesystem}", "-q", str(folder / "disk")], check=True)
        options = "loop,prjquota" if filesystem == "xfs" else "loop"
        subprocess.run(["mount", "-o", options, str(folder / "disk"), str(data)], check=True)
    config: dict[str, Any] = {
        "storage-driver": storage_driver,
        "storage-opts": list(storage),
        "live-restore": live_restore,
    }
    engine = OwnEngine(folder, **config)
    yield engine
    engine.stop()
    for mount in reversed(daemons.mounts_below(folder)):
        subprocess.run(["umount", mount], check=True)


@contextmanager
def dies_at(engine: OwnEngine, point: int) -> Iterator[Callable[[], bool]]:
    """Kill an engine at one request of the body; yield a function that returns True afterwards.

    :param point: the number of the request of this thread, to any engine, before which the engine
        dies
    """
    numbers = itertools.count(1)
    concerned = threading.current_thread()
    send = docker.APIClient.send
    died = threading.Event()

    def dying(*arguments: Any, **options: Any) -> Any:
        if threading.current_thread() is concerned and next(numbers) == point:
            engine.kill()
            died.set()
        return send(*arguments, **options)

    with mock.patch.object(docker.APIClient, "send", dying):
        yield died.is_set


def major_version() -> int:
    """Return the first number of the version of the engine that a session runs."""
    command = ["dockerd", "--version"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(shown.split()[2].partition(".")[0])


def why_no_devicemapper() -> str:
    """Return why no engine with the storage driver devicemapper can run; empty if one can."""
    if major_version() >= _FIRST_WITHOUT_DEVICEMAPPER:
        return "Engine 25 and newer have no storage driver for a device mapper"
    if not Path("/dev/mapper/control").exists():
        return "this machine has no device mapper"
    return ""


def remove_containers(url: str) -> None:
    """Delete all containers of an engine with their anonymous volumes."""
    client = docker.APIClient(base_url=url, timeout=60)
    for container in client.containers(all=True):
        client.remove_container(container["Id"], force=True, v=True)
    client.close()


def _write_config(folder: Path, **more: object) -> str:
    url = f"unix://{folder}/docker.sock"
    config = {
        "data-root": str(folder / "data" / "docker"),
        "exec-root": str(folder / "exec"),
        "pidfile": str(folder / "docker.pid"),
        "containerd": str(folder / "containerd" / "containerd.sock"),
        "hosts": [url],
        "group": "root",
        "runtimes": {"novadocker": {"path": str(SHIM)}},
        "live-restore": True,
        "iptables": False,
        "bridge": "none",
        "userland-proxy": False,
        **more,
    }
    (folder / "daemon.json").write_text(json.dumps(config))
    return url


def _connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(os.fspath(path))
        except OSError:
            return False
        return True


def _answers(path: Path) -> bool:
    # Newer engines listen long before they answer.
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_ANSWER_SECONDS)
        try:
            client.connect(os.fspath(path))
            client.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in client.recv(64)
        except OSError:
            return False
