# SPDX-License-Identifier: Apache-2.0
"""Waits for what offers no event."""

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def until(holds: Callable[[], Answer], seconds: float = 60, interval: float = 0.05) -> Answer:
    """Ask until the answer is true; return it."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"it does not come true within {seconds:g} s"
        time.sleep(interval)
    return found
