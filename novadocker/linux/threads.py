# SPDX-License-Identifier: Apache-2.0
"""Work that goes on in a thread while the caller does something else."""

from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import ParamSpec

P = ParamSpec("P")

THREAD = "meanwhile"
"""What the names of these threads begin with."""


@contextmanager
def meanwhile(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> Iterator[None]:
    """Run a function in a thread of its own while the block runs; it has ended when the block has.

    Its error is raised when the block ends; that of the block goes before it.
    """
    with futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix=THREAD) as executor:
        running = executor.submit(function, *args, **kwargs)
        yield
        running.result()
