# SPDX-License-Identifier: Apache-2.0
"""Threads that repeat a function or run one beside a block, and limits for what they log."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Generic, ParamSpec, TypeVar

LOG = logging.getLogger(__name__)

Answer = TypeVar("Answer")
P = ParamSpec("P")

THREAD = "meanwhile"
"""Prefix of the names of the threads of ``meanwhile``."""


class Repeated:
    """A thread that calls a function, waits, and calls it again until it is stopped.

    The thread is a daemon, because the function may block for ever on a program that hangs: it must
    not keep the process from its end.

    :param name: name of the thread
    :param function: an exception is logged once until a call succeeds, and does not end the thread
    :param seconds: interval between the end of a call and the begin of the next one
    """

    def __init__(self, name: str, function: Callable[[], object], seconds: float) -> None:
        self._name = name
        self._function = function
        self._seconds = seconds
        self._stopped = threading.Event()
        self._failures = Failures("Failed to run the thread")

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def stop(self) -> None:
        """Stop the thread after the call that runs. Does not wait for it."""
        self._stopped.set()

    def _run(self) -> None:
        while True:
            with self._failures.of(self._name):
                self._function()
            if self._stopped.wait(self._seconds):
                return


class Failures:
    """Blocks for one object each, in a loop over all; safe to share between threads.

    A block that fails is logged, and does not affect the blocks for other objects. A tenant can
    cause failures, so the next one of the same object is logged only after a success.

    :param action: begin of the log line, which continues with the name of the object
    :param known: exceptions that are logged without a traceback
    :param of_all: exceptions that concern all objects; the block raises them
    """

    def __init__(
        self,
        action: str,
        known: tuple[type[Exception], ...] = (OSError,),
        of_all: tuple[type[Exception], ...] = (),
    ) -> None:
        self._action = action
        self._known = known
        self._of_all = of_all
        self._lock = threading.Lock()
        self._failed: set[str] = set()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Log an exception of the block, with a traceback unless it is a known one.

        :param name: name of the object
        """
        try:
            yield
        except self._of_all:
            raise
        except Exception as error:
            with self._lock:
                is_new = name not in self._failed
                self._failed.add(name)
            if is_new:
                trace = None if isinstance(error, self._known) else error
                LOG.error("%s %s: %s", self._action, name, error, exc_info=trace)
        else:
            with self._lock:
                self._failed.discard(name)

    def keep(self, names: Iterable[str]) -> None:
        """Forget all objects but these."""
        with self._lock:
            self._failed.intersection_update(names)


class Polled(Generic[Answer]):
    """The last answer of a function that a thread calls again and again.

    ``last`` does not block and may be called from any thread.

    :param name: name of the thread
    :param ask: returns the answer; raises OSError or ValueError if there is none
    :param nothing: the answer before the first call, after an error, and once an answer is older
        than three intervals
    :param seconds: interval between the end of a call and the begin of the next one
    """

    def __init__(
        self, name: str, ask: Callable[[], Answer], nothing: Answer, seconds: float
    ) -> None:
        self._name = name
        self._ask = ask
        self._nothing = nothing
        self._seconds = seconds
        self._answer = (0.0, nothing)
        self._repeated = Repeated(name, self._poll, seconds)

    def start(self) -> None:
        """Start the thread."""
        self._repeated.start()

    def stop(self) -> None:
        """Stop the thread after the call that runs. Does not wait for it."""
        self._repeated.stop()

    def last(self) -> Answer:
        """Return the last answer."""
        at, answer = self._answer
        return answer if time.monotonic() < at + 3 * self._seconds else self._nothing

    def _poll(self) -> None:
        answer = self._nothing
        try:
            answer = self._ask()
        except (OSError, ValueError) as error:
            LOG.debug("Failed to poll %s: %s", self._name, error)
        self._answer = (time.monotonic(), answer)


@contextmanager
def meanwhile(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> Iterator[None]:
    """Run a function in a thread of its own while the block runs, and wait for it at the end.

    Raises the error of the function when the block ends. An error of the block takes precedence.
    """
    with futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix=THREAD) as executor:
        running = executor.submit(function, *args, **kwargs)
        yield
        running.result()


class Sparse:
    """A limit for log lines of events that others can cause; safe to share between threads.

    :param seconds: least time between two lines
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._next_at = -math.inf
        self._others = 0

    def count(self) -> int | None:
        """Count an event. Return None if it must not be logged.

        :returns: if the event is to be logged, the number of events since the last logged one
        """
        with self._lock:
            now = self._clock()
            if now < self._next_at:
                self._others += 1
                return None
            others, self._others = self._others, 0
            self._next_at = now + self._seconds
            return others
