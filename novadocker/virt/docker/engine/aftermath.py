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
# Nothing fills so much space between two looks.
_RARE_LOOK_SECONDS = 5.0
_AMPLE_BYTES = 32 << 30
# Between two files, the engine has none open, and the image determines for how long.
_CALM_SECONDS = 600
# A program that ends keeps its caller waiting.
_LAST_CALM_SECONDS = 5
_MOST_SECONDS = 6 * 3600
# A layer may be begun while the engine still notices the end of the pull.
_LATE_SECONDS = 2

_THREAD = "pull-aftermath"

_lock = threading.Lock()
_ending = threading.Event()


@dataclass
class _Pull:
    """A pull that failed.

    :ivar since: its begin, in seconds since 1970
    :ivar until: begin of the last layer that may be the pull's
    :ivar least: free space in bytes below which files are broken off
    :ivar failed: when it failed, by the monotonic clock
    :ivar written: when the engine last unpacked a layer that may be the pull's
    """

    since: int
    until: int
    least: int
    failed: float
    written: float


_pulls: dict[Path, list[_Pull]] = {}


def watch(folder: Path, since: int, least: int) -> None:
    """Watch in a thread what the engine still unpacks of a pull that failed just now.

    :param folder: the engine's data root
    :param since: begin of the pull, in seconds since 1970
    :param least: free space in bytes below which files are broken off
    """
    now = time.monotonic()
    with _lock:
        found = _pulls.get(folder, [])
        found.append(_Pull(since, int(time.time()) + _LATE_SECONDS, least, now, now))
        if folder in _pulls:
            return
        _pulls[folder] = found
    threading.Thread(target=_run, args=(folder,), name=_THREAD, daemon=True).start()


def wait() -> None:
    """Wait until the engine unpacks nothing of the failed pulls, at most six hours.

    A program calls this before it ends, because the threads end with it.
    """
    _ending.set()
    for thread in threading.enumerate():
        if thread.name == _THREAD:
            thread.join()


def _run(folder: Path) -> None:
    seconds = _LOOK_SECONDS
    warned = False
    while pulls := _watched(folder):
        time.sleep(seconds)
        try:
            seconds = _look(folder, pulls)
        except (OSError, *privsep.UNANSWERED) as error:
            if not warned:
                LOG.warning("Failed to see what the engine unpacks below %s: %s", folder, error)
            warned = True
        except BaseException:
            with _lock:
                del _pulls[folder]
            raise


def _watched(folder: Path) -> list[_Pull]:
    """Return the pulls whose layers may still be unpacked."""
    calm = _LAST_CALM_SECONDS if _ending.is_set() else _CALM_SECONDS
    now = time.monotonic()
    with _lock:
        _pulls[folder] = [
            pull
            for pull in _pulls[folder]
            if now - pull.written < calm and now - pull.failed < _MOST_SECONDS
        ]
        # A pull that fails from now on has a thread of its own.
        return list(_pulls[folder]) or _pulls.pop(folder)


def _look(folder: Path, pulls: list[_Pull]) -> float:
    """Break off what takes too much space, and return the seconds until the next look."""
    begins = unpacking.begins(str(folder), min(pull.since for pull in pulls))
    for pull in pulls:
        if not any(pull.since <= begin <= pull.until for begin in begins):
            continue
        pull.written = time.monotonic()
        if space.free(folder) < pull.least and (
            broken := unpacking.break_off(str(folder), pull.since, pull.until)
        ):
            LOG.warning(
                "%d files that the engine unpacked below %s were broken off, because less than "
                "%d MiB were free and it had begun their layers during a pull that failed",
                broken,
                folder,
                pull.least >> 20,
            )
    ample = space.free(folder) > max(pull.least for pull in pulls) + _AMPLE_BYTES
    return _RARE_LOOK_SECONDS if ample and not _ending.is_set() else _LOOK_SECONDS
