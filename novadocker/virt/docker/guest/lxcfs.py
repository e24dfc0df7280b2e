# SPDX-License-Identifier: Apache-2.0
"""The containers' own view of /proc by lxcfs, where it runs on the host.

A thread of its own looks at lxcfs, so that one that hangs holds up nobody else.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from oslo_log import log as logging
from oslo_privsep import daemon

from novadocker import exception
from novadocker.privsep.guest import lxcfs
from novadocker.virt.docker.containers.servers import Listing
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.guest.load_average import Loads
from novadocker.virt.docker.model import Mount

LOG = logging.getLogger(__name__)

# runc lets these be mounted over and no others (libcontainer, checkProcMount)
_PROC_FILES = (
    "cpuinfo", "diskstats", "loadavg", "meminfo", "slabinfo", "stat", "swaps", "uptime",
)  # fmt: skip
_LOADS = "proc/loadavg"
_CPU_FOLDER = "sys/devices/system/cpu"
# the options with one of which it counts load averages
_LOADS_OPTIONS = frozenset({"-l", "--enable-loadavg"})

_LOOK_SECONDS = 5.0
_WAIT_SECONDS = 30.0
# what was seen longer ago is looked at again before a container is made
_FRESH_SECONDS = 1.0

# of one container's restoration: the thread goes on with the others, and tries again
_FAILURES = (
    exception.EngineUnavailable,
    exception.EngineError,
    daemon.FailedToDropPrivileges,
    OSError,
    ValueError,
)


@dataclass(frozen=True)
class View:
    """What lxcfs offers now.

    :ivar device: of its file system, another one with each start of lxcfs; None if it is not there
    :ivar paths: below its mount point; none when it is not there
    :ivar arguments: the command line of its process; none if that is not found
    :ivar error: why it can't be used, although it was or should be there
    """

    device: int | None = None
    paths: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    error: str = ""

    @property
    def counts_loads(self) -> bool:
        """Whether its load averages are the servers' own."""
        return bool(_LOADS_OPTIONS & set(self.arguments))


def read_view(folder: str, before: View | None = None) -> View:
    """Look at lxcfs; nothing at all is no error, it need not be there.

    :param before: what was seen the last time; its process is looked for again if it is another
    """
    root = Path(folder)
    try:
        # a file system of its own, else it is the folder for a mount that is missing
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
    """Return the command line of the lxcfs that serves a folder; empty if it is not found."""
    for process in psutil.process_iter(["name", "cmdline"]):
        arguments = process.info["cmdline"] or []
        if process.info["name"] == "lxcfs" and folder in [word.rstrip("/") for word in arguments]:
            return tuple(arguments)
    return ()


class Lxcfs:
    """Keeps looking at lxcfs; safe to share between threads.

    :param folder: where lxcfs is mounted; empty for none
    :param loads: give load averages where lxcfs counts none
    :param restore: gives a container its files back; ``views.restore_view``
    """

    def __init__(
        self,
        folder: str,
        engine: Engine,
        listing: Listing,
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
        # the lxcfs that all containers are known to have their files of
        self._restored: int | None = None

    def start(self) -> None:
        """Begin to look."""
        if self._folder:
            threading.Thread(target=self._run, name="lxcfs", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped = True
        self._wanted.set()

    def look(self) -> float:
        """Have the thread look now, and go on; return what ``mounts`` takes."""
        asked = time.monotonic()
        self._wanted.set()
        return asked

    def mounts(self, instance_uuid: str, asked: float) -> tuple[Mount, ...]:
        """Return what a new container gets, after a bounded wait for a broken lxcfs.

        :param asked: of ``look``, for which the caller has not waited yet
        :raises ViewUnavailable: lxcfs is broken and was not mended in time
        """
        view = self._await_view(max(asked, time.monotonic() - _FRESH_SECONDS))
        return tuple(
            self._loads.mount(instance_uuid)
            if path == _LOADS and not view.counts_loads
            else Mount(f"{self._folder}/{path}", f"/{path}")
            for path in view.paths
        )

    def await_mended(self) -> None:
        """Wait, within bounds, while lxcfs is broken: a container with its files can't start."""
        try:
            self._await_view(time.monotonic())
        except exception.ViewUnavailable as error:
            LOG.warning("%s", error)

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
            began = time.monotonic()
            found = read_view(self._folder, self._view)
            with self._changed:
                if found == View() != self._view:
                    # it was there, so containers have its files
                    found = View(error=self._view.error or "it is no longer mounted")
                if found.error and not self._view.error:
                    LOG.error("lxcfs at %s broke: %s", self._folder, found.error)
                self._view, self._looked_at = found, began
                self._changed.notify_all()
            if found.device is not None and found.device != self._restored:
                self._restore_all(found.device)
            self._wanted.wait(_LOOK_SECONDS)
            self._wanted.clear()

    def _restore_all(self, device: int) -> None:
        """Give every running container the files of the lxcfs that runs now."""
        complete = True
        try:
            servers = self._listing.servers().values()
        except (exception.EngineUnavailable, exception.EngineError) as error:
            LOG.warning("Containers get the files of lxcfs back later: %s", error)
            return
        for server in servers:
            try:
                pid = self._engine.inspect_container(server.id).pid
                count = self._restore(server.id, pid, self._folder) if pid else 0
            except exception.ContainerNotFound:
                continue
            except _FAILURES as error:
                LOG.warning("Container %s has files of a former lxcfs: %s", server.name, error)
                complete = False
            else:
                if count:
                    LOG.info("Container %s got %d files of lxcfs back", server.name, count)
        if complete:
            self._restored = device
