# SPDX-License-Identifier: Apache-2.0
"""The machine's memory in use, from the kernel's counters."""

import os
import re
import time
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STEP_SECONDS = 0.25
_SETTLED_BYTES = 256 * 1024
_SETTLE_SECONDS = 6.0


def used_bytes() -> int:
    """Return the memory in use when two readings in a row agree, or after six seconds.
    The sum is free(1)'s, less the pages that the kernel keeps free for each CPU. MemFree and
    MemAvailable do not count those pages, of which each batch of processes takes and returns tens
    of MB.
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
    text = Path("/proc/meminfo").read_text()
    kilobytes = {name: int(value) for name, value in re.findall(r"(?m)^(\w+):\s+(\d+) kB$", text)}
    caches = sum(kilobytes[name] for name in ("Buffers", "Cached", "SReclaimable"))
    # Shmem, the pages of memory file systems, is part of Cached but cannot be reclaimed.
    used = kilobytes["MemTotal"] - kilobytes["MemFree"] - caches + kilobytes["Shmem"]
    pages = re.findall(r"(?m)^\s+count:\s+(\d+)$", Path("/proc/zoneinfo").read_text())
    return used * 1024 - sum(map(int, pages)) * _PAGE_BYTES
