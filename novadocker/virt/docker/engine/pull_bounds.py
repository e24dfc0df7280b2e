# SPDX-License-Identifier: Apache-2.0
"""Bounds of an image that the engine pulls from a registry.

The engine reports the size of each layer as the registry has it, which is compressed, and of the
image only when it has unpacked it. A few KB can unpack to any size, and the engine reports nothing
while it unpacks a single file, so a thread watches the free space meanwhile.

After a failed pull, the engine may still unpack a layer: it does not look at the request before a
file is complete. So ``aftermath`` watches it.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from novadocker import exception
from novadocker.linux import space
from novadocker.virt.docker.engine import aftermath

_GROWING = frozenset({"Downloading", "Extracting"})
_LOOK_SECONDS = 1.0
# A registry that sends a byte now and then would keep the others' pulls waiting for ever.
_MOST_SECONDS = 6 * 3600


class Baselines:
    """The free space from which pulls that run at the same time are counted, by directory.

    If each pull had half of what is free at its own start, pulls that start one after the other
    would leave a half, then a quarter, and so on. So a pull counts from the start of the first one
    that runs, as long as any runs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By directory: the pulls that run, and the most space that was free at the start of one.
        self._running: dict[Path, tuple[int, int]] = {}

    @contextlib.contextmanager
    def counted(self, folder: Path, free: int) -> Iterator[int]:
        """Count a pull while the block runs, and yield the free space from which it is counted.

        :param free: what is free at its start
        """
        with self._lock:
            pulls, most = self._running.get(folder, (0, 0))
            most = max(most, free)
            self._running[folder] = (pulls + 1, most)
        try:
            yield most
        finally:
            with self._lock:
                pulls, most = self._running.pop(folder)
                if pulls > 1:
                    self._running[folder] = (pulls - 1, most)


_BASELINES = Baselines()


class PullBounds:
    """The bounds of one pull.

    :param name: the image's, for the fault
    :param folder: directory on the file system on which the engine unpacks layers
    :param most: bytes that the image may have; 0 means no other bound than the host's free space
    """

    def __init__(self, name: str, folder: str, most: int) -> None:
        self._name = name
        self._folder = Path(folder)
        self._most = most
        # By layer: a layer that is downloaded is no longer reported.
        self._sizes: dict[str, int] = {}
        self._size = 0

    def note(self, message: Mapping[str, Any]) -> None:
        """Check a message of the engine about the progress of the pull.

        :raises ImageTooLarge: the image is larger than it may be
        """
        detail = message.get("progressDetail") or {}
        if message.get("status") in _GROWING:
            layer = str(message.get("id"))
            size = max(int(detail.get("current") or 0), int(detail.get("total") or 0))
            more = size - self._sizes.get(layer, 0)
            if more > 0:
                self._sizes[layer] = size
                self._size += more
                self.check(self._size)

    def check(self, size: int) -> None:
        """Check the size of the image, as far as it is known.

        :raises ImageTooLarge: it is larger than it may be
        """
        if self._most and size > self._most:
            raise exception.ImageTooLarge(name=self._name, size=size, most=self._most)

    @contextlib.contextmanager
    def watched(self, cut: Callable[[], None]) -> Iterator[None]:
        """Watch the free space and the time in a thread while the block runs.

        :param cut: ends what the block waits for
        :raises PullCutOff: the pull and those beside it take more than half of the free space, or
            it takes too long; replaces an exception of the block
        :raises OSError: the free space cannot be read at the start
        """
        begin = int(time.time())
        with _BASELINES.counted(self._folder, self._free_now()) as free:
            try:
                with self._watched(cut, free // 2):
                    yield
            except BaseException:
                aftermath.watch(self._folder, begin, free // 2)
                raise

    @contextlib.contextmanager
    def _watched(self, cut: Callable[[], None], least: int) -> Iterator[None]:
        ended = threading.Event()
        reasons: list[str] = []

        def watch() -> None:
            deadline = time.monotonic() + _MOST_SECONDS
            while not ended.wait(_LOOK_SECONDS):
                reason = self._reason_to_end(deadline, least)
                if reason:
                    reasons.append(reason)
                    cut()
                    return

        watcher = threading.Thread(target=watch, name="pull-bounds", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            if reasons:
                raise exception.PullCutOff(name=self._name, reason=reasons[0])

    def _reason_to_end(self, deadline: float, least: int) -> str:
        """Return why the pull must end; empty if it may go on."""
        if time.monotonic() > deadline:
            return f"the registry did not send it within {_MOST_SECONDS // 3600} h"
        try:
            enough = self._free_now() >= least
        except OSError as error:
            return f"the free space of this host cannot be read: {error.strerror}"
        return "" if enough else "this host has not enough free space for the unpacked image"

    def _free_now(self) -> int:
        return space.free(self._folder)
