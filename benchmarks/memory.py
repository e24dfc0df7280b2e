# SPDX-License-Identifier: Apache-2.0
"""The machine's memory, as the kernel counts it."""

import re
import time
from pathlib import Path

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_PAGES_AND_SLABS = "3"
# what was freed or started a moment ago is settled when two looks agree
_STEP_SECONDS = 0.25
_SETTLED_BYTES = 256 * 1024
_SETTLE_SECONDS = 6.0


def available_bytes() -> int:
    """Return MemAvailable once it has settled, without caches; the last look after six seconds.

    Needs root.
    """
    deadline = time.monotonic() + _SETTLE_SECONDS
    last = _look()
    while True:
        time.sleep(_STEP_SECONDS)
        now = _look()
        if abs(now - last) < _SETTLED_BYTES or time.monotonic() > deadline:
            return now
        last = now


def _look() -> int:
    _DROP_CACHES.write_text(_PAGES_AND_SLABS)
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024
