# SPDX-License-Identifier: Apache-2.0
"""Requests that the engine did not fulfil and that are repeated when the engine answers again.

The requests are kept in memory. The module of each kind of request says which code finds the
containers concerned after a restart of nova-compute. Freezes are not kept here but as files
(``freeze``), because a frozen server must be thawed after a restart of nova-compute, too.
"""

import threading
from collections.abc import Callable

from oslo_log import log as logging

from novadocker import exception, privsep

LOG = logging.getLogger(__name__)

FAILURES = (exception.EngineError, OSError, *privsep.UNANSWERED)
"""Failures that concern one key only; a request may call functions that run as root."""


class Pending:
    """The pending requests of one kind; safe to share between threads.

    :param request: sends the request for a key, such as a container's name; must be idempotent
    :param failure: the log message about a failure, with places for the key and the cause
    """

    def __init__(self, request: Callable[[str], None], failure: str) -> None:
        self._request = request
        self._failure = failure
        self._lock = threading.Lock()
        self._keys: set[str] = set()

    def add(self, key: str) -> None:
        """Keep a request for ``sweep``."""
        with self._lock:
            self._keys.add(key)

    def send(self, key: str) -> None:
        """Send a request, and keep it for ``sweep`` if it fails; raises as the request does."""
        with self._lock:
            self._keys.add(key)
            self._send(key)

    def sweep(self) -> None:
        """Send the kept requests; keep those that fail for the next call.

        :raises EngineUnavailable: the engine does not answer; the requests are kept
        """
        with self._lock:
            for key in sorted(self._keys):
                try:
                    self._send(key)
                except exception.ContainerNotFound:
                    # The container was deleted, so the request has no object any more.
                    self._keys.discard(key)
                except FAILURES as error:
                    # A failed request must not delay the other requests.
                    LOG.warning(self._failure, key, error)

    def _send(self, key: str) -> None:
        self._request(key)
        self._keys.discard(key)
