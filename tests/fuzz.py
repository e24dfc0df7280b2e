# SPDX-License-Identifier: Apache-2.0
"""Random input for parsers of hostile data: how much of it, how it is made, and its bounds.

``make fuzz`` runs the tests with the profile ``nightly``, which has twenty times the examples
and other ones each time.
"""

import contextlib
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CORPUS = Path(__file__).with_name("corpus")
"""Input that a parser once did not withstand, in a directory for each parser."""

_NIGHTLY = "nightly"
_NIGHTLY_FACTOR = 20
_LARGEST = 1 << 20
# What is not linear takes minutes for the largest inputs; machines differ by more than two times.
_SECONDS = 5.0
_BYTES = 64 << 20

settings.register_profile(_NIGHTLY, print_blob=True)


def examples(count: int) -> settings:
    """Return the settings of a test with so many examples, or twenty times as many each night.

    A run of all tests has the same examples each time, so that it does not fail by chance. An
    example has no deadline, because hypothesis measures the clock's time, and the machine runs
    other tests: ``bounds`` measures what the example uses.
    """
    nightly = settings.get_current_profile_name() == _NIGHTLY
    return settings(
        max_examples=count * (_NIGHTLY_FACTOR if nightly else 1),
        deadline=None,
        derandomize=not nightly,
        database=settings.default.database if nightly else None,
        suppress_health_check=[
            HealthCheck.filter_too_much,
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
        ],
    )


def mutations(seeds: Sequence[bytes], words: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Return a strategy of inputs of at most 1 MiB: valid ones with some pieces replaced.

    :param words: pieces that mean something to the parser
    """
    pieces = st.sampled_from([b"", b"\0", b"\xff", b"\n", *words]) | st.binary(max_size=8)
    counts = st.sampled_from([1, 1, 1, 1, 2, 600, 1 << 17])
    edits = st.tuples(st.integers(0, 1 << 16), st.integers(0, 600), pieces, counts)
    return st.builds(_edited, st.sampled_from([b"", *seeds]), st.lists(edits, max_size=5))


def _edited(content: bytes, edits: Sequence[tuple[int, int, bytes, int]]) -> bytes:
    for place, cut, piece, count in edits:
        begin = place % (len(content) + 1)
        content = (content[:begin] + piece * count + content[begin + cut :])[:_LARGEST]
    return content


def withstand(
    parse: Callable[[bytes], object], content: bytes, refusals: tuple[type[Exception], ...]
) -> None:
    """Parse an input, which may be refused; fail if it takes too much time or memory."""
    with bounds(), contextlib.suppress(*refusals):
        parse(content)


@contextlib.contextmanager
def bounds() -> Iterator[None]:
    """Fail if the block takes too much CPU time or memory, in all threads.

    An exception of the block takes precedence.
    """
    tracemalloc.start()
    try:
        begin = time.process_time()
        yield
        assert time.process_time() - begin < _SECONDS
        assert tracemalloc.get_traced_memory()[1] < _BYTES
    finally:
        tracemalloc.stop()
