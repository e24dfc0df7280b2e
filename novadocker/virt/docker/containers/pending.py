# SPDX-License-Identifier: Apache-2.0
"""Requests that the engine did not fulfil and that are repeated when the engine answers again.

The requests are kept in memory. The module of each kind of request says which code finds the
containers concerned after a restart of nova-compute. Freezes are not kept here but as files
(``freeze``), because a frozen server must be thawed after a restart of nova-compute, too.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator

from novadocker import exception, privsep
from novadocker.linux.threads import Failures

FAILURES = (exception.EngineError, OSError, *privsep.UNANSWERED)
"""Failures that concern one key only; a request may call functions that run as root."""

HUNG_SECONDS = 300.0
"""Seconds until a request for a container that hangs in the engine is repeated."""

_OTHER_SECONDS = 60.0


class Pending:
    """The pending requests of one kind; safe to share between threads.

    :param request: sends the request for a key, such as a container's name; must be idempotent
    :param action: begin of the log line about a failure, which continues with the key
    :param clock: returns seconds
    """

    def __init__(
        self,
        request: Callable[[str], None],
        action: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._request = request
        self._failures = Failures(action, FAILURES, (exception.EngineUnavailable,))
        self._clock = clock
        self._lock = threading.Lock()
        self._sent = threading.Condition(self._lock)
        self._due: dict[str, float] = {}
        self._sending: set[str] = set()

    def add(self, key: str) -> None:
        """Keep a request for ``sweep``."""
        with self._lock:
            self._due.setdefault(key, 0.0)

    def send(self, key: str) -> None:
        """Send a request, and keep it for ``sweep`` if it fails; raises as the request does.

        Waits up to 60 s for another thread that sends the same request, because the engine refuses
        a second removal of a container in progress.
        """
        self.add(key)
        with self._sent:
            self._sent.wait_for(lambda: key not in self._sending, _OTHER_SECONDS)
            self._sending.add(key)
        self._send(key)

    def sweep(self) -> None:
        """Send the kept requests; keep those that fail for the next call.

        A request for a container that hangs in the engine is repeated later, because each attempt
        takes long.

        :raises EngineUnavailable: the engine does not answer; the requests are kept
        """
        with self._lock:
            self._failures.keep(self._due)
        for key in self._take_due():
            # A failed request must not delay the other requests.
            with self._failures.of(key):
                try:
                    self._send(key)
                except exception.ContainerNotFound:
                    # The container was deleted, so the request has no object any more.
                    self._drop(key)
                except exception.ContainerHangs:
                    with self._lock:
                        self._due[key] = self._clock() + HUNG_SECONDS
                    raise

    def _take_due(self) -> Iterator[str]:
        """Yield the keys that are due and that no other thread sends, and mark each as sent."""
        with self._lock:
            keys = sorted(self._due)
        for key in keys:
            with self._lock:
                if key in self._sending or self._clock() < self._due.get(key, math.inf):
                    continue
                self._sending.add(key)
            yield key

    def _send(self, key: str) -> None:
        try:
            self._request(key)
            self._drop(key)
        finally:
            with self._sent:
                self._sending.discard(key)
                self._sent.notify_all()

    def _drop(self, key: str) -> None:
        with self._lock:
            self._due.pop(key, None)
