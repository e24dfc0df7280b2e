# SPDX-License-Identifier: Apache-2.0
"""Durations of function calls, from any caller and thread."""

import functools
import threading
import time
from typing import Any


class Stopwatch:
    """Sums the seconds spent in each part of an operation, by the part's name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}

    def watch(self, owner: Any, function: str, part: str) -> None:
        """Measure each later call of a function of a module or a class.

        :raises AttributeError: the owner has no such function
        """
        original = getattr(owner, function)

        @functools.wraps(original)
        def timed(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return original(*arguments, **named)
            finally:
                self._add(part, time.perf_counter() - begin)

        setattr(owner, function, timed)

    def take(self) -> dict[str, float]:
        """Return the seconds of each part since the last call."""
        with self._lock:
            taken, self._seconds = self._seconds, {}
        return taken

    def _add(self, part: str, seconds: float) -> None:
        with self._lock:
            self._seconds[part] = self._seconds.get(part, 0.0) + seconds
