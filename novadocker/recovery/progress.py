# SPDX-License-Identifier: Apache-2.0
"""How far a long work is, on a terminal."""

import sys
import time
from collections.abc import Iterable, Iterator

_SECONDS = 0.2
_WIDTH = 30
_MEGABYTE = 10**6


def shown(chunks: Iterable[bytes], total: int, what: str) -> Iterator[bytes]:
    """Yield the chunks; on a terminal show how many of ``total`` bytes went by.

    The total may be wrong: sparse files take less, the archive's own records more.
    """
    if not sys.stderr.isatty():
        yield from chunks
        return
    done, shown_at = 0, 0.0
    for chunk in chunks:
        done += len(chunk)
        if time.monotonic() - shown_at > _SECONDS:
            shown_at = time.monotonic()
            share = min(done / total, 1) if total else 1
            bar = "#" * int(share * _WIDTH)
            sys.stderr.write(f"\r{what} [{bar:{_WIDTH}}] {share:4.0%} {done / _MEGABYTE:.0f} MB")
            sys.stderr.flush()
        yield chunk
    sys.stderr.write(f"\r{what}: {done / _MEGABYTE:.0f} MB{' ' * _WIDTH}\n")
