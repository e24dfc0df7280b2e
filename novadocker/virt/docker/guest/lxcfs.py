# SPDX-License-Identifier: Apache-2.0
"""The containers' own view of /proc by lxcfs, if lxcfs runs on the host.

A thread of its own reads the files of lxcfs, so that a lxcfs that hangs blocks only this thread.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from oslo_log import log as logging

from novadocker import exception, privsep
from novadocker.linux import namespaces
from novadocker.linux.threads import Failures
from novadocker.privsep.guest import lxcfs
from novadocker.virt.docker.containers.pending import HUNG_SECONDS
from novadocker.virt.docker.containers.servers import ServerList
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.engine.connection import PATIENCE
from novadocker.virt.docker.guest.load_average import Loads
from novadocker.virt.docker.model import Container, Mount

LOG = logging.getLogger(__name__)

# runc allows mounts over these files of /proc only (libcontainer, checkProcMount).
_PROC_FILES = (
    "cpuinfo", "diskstats", "loadavg", "meminfo", "slabinfo", "stat", "swaps", "uptime",
)  # fmt: skip
_PROC = Path("/proc")
_LOADS = "proc/loadavg"
_CPU_FOLDER = "sys/devices/system/cpu"
# lxcfs computes load averages if it has one of these options.
_LOADS_OPTIONS = frozenset({"-l", "--enable-loadavg"})

_LOOK_SECONDS = 5.0
_WAIT_SECONDS = 30.0
# An older view is read again before a container is created.
_FRESH_SECONDS = 1.0

# Errors of a container that are logged without a traceback.
_KNOWN = (
    exception.EngineUnavailable,
    exception.EngineError,
    OSError,
    *privsep.UNANSWERED,
)


@dataclass(frozen=True)
class View:
    """The state of lxcfs at one moment.

    :ivar device: device number of its file system, which changes with each start of lxcfs; None if
        lxcfs is not mounted
    :ivar paths: files below its mount point that containers get; empty if lxcfs is not mounted
    :ivar arguments: command line of its process; empty if the process is not found
    :ivar error: why the files can't be used although lxcfs is or was mounted; else empty
    """

    device: int | None = None
    paths: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    error: str = ""

    @property
    def counts_loads(self) -> bool:
        """Whether lxcfs computes load averages of each container."""
        return bool(_LOADS_OPTIONS & set(self.arguments))


def read_view(folder: str, before: View | None = None) -> View:
    """Read the state of lxcfs. If it is not mounted, return an empty view without an error.

    :param before: the view before; if lxcfs has the same device number, its process is not searched
        for again
    """
    root = Path(folder)
    try:
        # If lxcfs is not mounted, the directory belongs to the file system of its parent.
        if not root.is_mount():
            return View()
        proc = {entry.name for entry in (root / "proc").iterdir()}
        (root / "proc" / "meminfo").read_bytes()
        paths = [f"proc/{name}" for name in _PROC_FILES if name in proc]
        if (root / _CPU_FOLDER / "online").exists():
            paths.append(_CPU_FOLDER)
        device = root.stat().st_dev
        known = before is not None and before.device == device
        arguments = before.arguments if before and known else _read_arguments(folder)
        return View(device, tuple(paths), arguments)
    except OSError as error:
        return View(error=str(error))


def _read_arguments(folder: str) -> tuple[str, ...]:
    """Return the command line of the lxcfs process that serves a directory; empty if not found.

    A tenant's process may have any name and arguments.
    """
    own = namespaces.count_pid_namespaces(_PROC / "self")
    for process in psutil.process_iter(["name", "cmdline"]):
        arguments = process.info["cmdline"] or []
        if (
            process.info["name"] == "lxcfs"
            and folder in [word.rstrip("/") for word in arguments]
            and namespaces.count_pid_namespaces(_PROC / str(process.pid)) == own
        ):
            return tuple(arguments)
    return ()


class Lxcfs:
    """The thread that reads the state of lxcfs; safe to share between threads.

    :param folder: mount point of lxcfs; empty if it is not used
    :param loads: load averages for containers if lxcfs does not compute them
    :param restore: replaces a container's mounts of lxcfs; ``privsep.guest.lxcfs.restore_view``
    """

    def __init__(
        self,
        folder: str,
        engine: Engine,
        listing: ServerList,
        loads: Loads,
        restore: Callable[[str, int, str], int] = lxcfs.restore_view,
    ) -> None:
        self._folder = folder
        self._engine = engine
        self._listing = listing
        self._loads = loads
        self._restore = restore
        self._changed = threading.Condition()
        self._view = View()
        self._looked_at = 0.0
        self._wanted = threading.Event()
        self._stopped = False
        # All containers have the files of the lxcfs with this device number.
        self._restored: int | None = None
        # These containers, by their ids, have the files of the lxcfs with the number below.
        self._done: set[str] = set()
        self._done_device: int | None = None
        # Containers that hang in the engine, by their ids, are left alone until these times.
        self._hung_until: dict[str, float] = {}
        self._failures = Failures("Failed to replace mounts of lxcfs in container", _KNOWN)

    def start(self) -> None:
        """Start the thread. Does nothing if lxcfs is not used."""
        if self._folder:
            threading.Thread(target=self._run, name="lxcfs", daemon=True).start()

    def stop(self) -> None:
        """Stop the thread. Does not wait for it."""
        self._stopped = True
        self._wanted.set()

    def look(self) -> float:
        """Ask the thread to read the state now. Does not wait for it.

        :returns: the monotonic time of the request, for ``mounts``
        """
        asked = time.monotonic()
        self._wanted.set()
        return asked

    def mounts(self, instance_uuid: str, asked: float) -> tuple[Mount, ...]:
        """Return the mounts of a new container.

        Waits up to 30 seconds for the state of lxcfs and while lxcfs is broken.

        :param asked: the time that ``look`` returned
        :raises ViewUnavailable: lxcfs does not answer or is still broken
        """
        view = self._await_view(max(asked, time.monotonic() - _FRESH_SECONDS))
        return tuple(
            self._loads.mount(instance_uuid)
            if path == _LOADS and not view.counts_loads
            else Mount(f"{self._folder}/{path}", f"/{path}")
            for path in view.paths
        )

    def await_mended(self) -> None:
        """Wait up to 30 seconds while lxcfs is broken, because its containers can't start then."""
        try:
            self._await_view(time.monotonic())
        except exception.ViewUnavailable as error:
            LOG.warning("Failed to wait for lxcfs: %s", error)

    def _await_view(self, asked: float) -> View:
        if not self._folder:
            return View()
        deadline = time.monotonic() + _WAIT_SECONDS
        with self._changed:
            while self._looked_at < asked or self._view.error:
                self._wanted.set()
                left = deadline - time.monotonic()
                if left <= 0:
                    reason = self._view.error or "it does not answer"
                    raise exception.ViewUnavailable(folder=self._folder, reason=reason)
                self._changed.wait(min(left, 1.0))
            return self._view

    def _run(self) -> None:
        while not self._stopped:
            found = self._look_now()
            if found.device is not None and found.device != self._restored:
                self._restore_all(found.device)
            self._wanted.wait(_LOOK_SECONDS)
            self._wanted.clear()

    def _look_now(self) -> View:
        began = time.monotonic()
        found = read_view(self._folder, self._view)
        with self._changed:
            if found == View() != self._view:
                # Containers have the files of the lxcfs that was mounted before.
                found = View(error=self._view.error or "it is no longer mounted")
            if found.error and not self._view.error:
                LOG.error("Failed to read lxcfs at %s: %s", self._folder, found.error)
            self._view, self._looked_at = found, began
            self._changed.notify_all()
        return found

    def _restore_all(self, device: int) -> None:
        """Replace the mounts of lxcfs in every running container.

        A repetition for the same lxcfs leaves out containers that succeeded, and those that hung
        in the engine less than ``HUNG_SECONDS`` ago.
        """
        if device != self._done_device:
            self._done.clear()
            self._done_device = device
        complete = True
        try:
            servers = self._listing.servers()
        except (exception.EngineUnavailable, exception.EngineError) as error:
            LOG.warning("Failed to list containers for their mounts of lxcfs: %s", error)
            return
        listed = {server.id for server in servers.values()}
        self._failures.keep(listed)
        for container_id in self._hung_until.keys() - listed:
            del self._hung_until[container_id]
        for instance_uuid, server in servers.items():
            if server.id in self._done:
                continue
            if time.monotonic() < self._hung_until.get(server.id, 0.0):
                complete = False
                continue
            if self._wanted.is_set():
                # Because a container can take long, builds get the view before the next one.
                self._wanted.clear()
                self._look_now()
            restored = False
            with self._failures.of(server.id):
                self._restore_one(instance_uuid, server)
                restored = True
            complete = complete and restored
        if complete:
            self._restored = device

    def _restore_one(self, instance_uuid: str, server: Container) -> None:
        try:
            with self._engine.within(PATIENCE):
                pid = self._engine.inspect_container(server.id).pid
            count = self._restore(server.id, pid, self._folder) if pid else 0
        except exception.ContainerNotFound:
            return
        except exception.ContainerHangs:
            self._hung_until[server.id] = time.monotonic() + HUNG_SECONDS
            raise
        if pid:
            self._done.add(server.id)
        if count:
            LOG.info(
                "Replaced %d mounts of lxcfs in %s",
                count,
                server.name,
                instance_uuid=instance_uuid,
            )
