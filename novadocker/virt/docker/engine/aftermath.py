# SPDX-License-Identifier: Apache-2.0
"""What the engine still unpacks after a pull has failed.

The engine ends a pull that nobody waits for, but not within a file: it unpacks a sparse file of any
size to its end. A thread for each data root breaks such a file off before the disk is full.
"""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from oslo_log import log as logging

from novadocker import privsep
from novadocker.linux import space
from novadocker.privsep.storage import unpacking

LOG = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
# Between two files, the engine has none open.
_CALM_LOOKS = 5
_MOST_SECONDS = 6 * 3600

_THREAD = "pull-aftermath"

_lock = threading.Lock()


@dataclass
class _Watch:
    """The watch of one data root.

    :ivar since: begin of the first failed pull, in seconds since 1970
    :ivar least: free space in bytes below which files are broken off
    :ivar calm: looks since the engine last unpacked something
    """

    since: int
    least: int
    calm: int = 0


_watches: dict[Path, _Watch] = {}


def watch(folder: Path, since: int, least: int) -> None:
    """Watch in a thread what the engine still unpacks, until it unpacks nothing.

    :param folder: the engine's data root
    :param since: begin of the failed pull, in seconds since 1970
    :param least: free space in bytes below which files are broken off
    """
    with _lock:
        found = _watches.get(folder)
        if found:
            found.since = min(found.since, since)
            found.least = max(found.least, least)
            found.calm = 0
            return
        _watches[folder] = _Watch(since, least)
    threading.Thread(target=_run, args=(folder,), name=_THREAD, daemon=True).start()


def wait() -> None:
    """Wait for the end of all watches, at most six hours.

    A program calls this before it ends, because the threads end with it.
    """
    for thread in threading.enumerate():
        if thread.name == _THREAD:
            thread.join()


def _run(folder: Path) -> None:
    deadline = time.monotonic() + _MOST_SECONDS
    try:
        while not _is_over(folder, deadline):
            time.sleep(_LOOK_SECONDS)
            _look(folder)
    except BaseException as error:
        with _lock:
            del _watches[folder]
        if not isinstance(error, (OSError, *privsep.UNANSWERED)):
            raise
        LOG.warning("Failed to see what the engine unpacks below %s: %s", folder, error)


def _is_over(folder: Path, deadline: float) -> bool:
    with _lock:
        if _watches[folder].calm < _CALM_LOOKS and time.monotonic() < deadline:
            return False
        # A pull that fails from now on has a thread of its own.
        del _watches[folder]
        return True


def _look(folder: Path) -> None:
    with _lock:
        found = _watches[folder]
        since, least = found.since, found.least
        found.calm += 1
    if not unpacking.count(str(folder), since):
        return
    with _lock:
        found.calm = 0
    if space.free(folder) < least and (broken := unpacking.break_off(str(folder), since)):
        LOG.warning(
            "The engine went on unpacking a layer of a failed pull below %s until the disk was "
            "half full: %d files were broken off",
            folder,
            broken,
        )
