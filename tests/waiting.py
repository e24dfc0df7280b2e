# SPDX-License-Identifier: Apache-2.0
"""Polling of conditions that have no event."""

import time
from collections.abc import Callable
from typing import TypeVar

from tests import slowness

Answer = TypeVar("Answer")


def until(holds: Callable[[], Answer], seconds: float = 60, interval: float = 0.05) -> Answer:
    """Poll until the answer is true and return it; fail after ``seconds`` of a usual machine."""
    seconds *= slowness.FACTOR
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"the condition did not come true within {seconds:g} s"
        time.sleep(interval)
    return found
