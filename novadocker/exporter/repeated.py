# SPDX-License-Identifier: Apache-2.0
"""A question that is asked again and again, in a thread of its own: no scrape waits for it."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

LOG = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class Repeated(Generic[Answer]):
    """Asks in a thread; ``last`` may be called from others.

    :param ask: returns what is told; raises OSError or ValueError if that can't be had
    :param nothing: what is told then, and before the first answer
    :param seconds: from one time to the next; an answer that is three times as old is none
    """

    def __init__(
        self, name: str, ask: Callable[[], Answer], nothing: Answer, seconds: float
    ) -> None:
        self._name = name
        self._ask = ask
        self._nothing = nothing
        self._seconds = seconds
        self._stopped = threading.Event()
        self._answer = (0.0, nothing)

    def start(self) -> None:
        """Begin to ask."""
        # a daemon: who is asked may never answer
        threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()

    def last(self) -> Answer:
        """Return the last answer."""
        at, answer = self._answer
        return answer if time.monotonic() < at + 3 * self._seconds else self._nothing

    def _run(self) -> None:
        while True:
            answer = self._nothing
            try:
                answer = self._ask()
            except (OSError, ValueError) as error:
                LOG.debug("%s is not known: %s", self._name, error)
            self._answer = (time.monotonic(), answer)
            if self._stopped.wait(self._seconds):
                return
