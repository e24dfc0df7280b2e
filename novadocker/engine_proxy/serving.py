# SPDX-License-Identifier: Apache-2.0
"""The proxy's socket, and a thread for each of its clients."""

import logging
import socket
import threading

from novadocker.engine_proxy.engine import Known
from novadocker.engine_proxy.policy import Policy
from novadocker.engine_proxy.relay import Relay

LOG = logging.getLogger(__name__)

# An idle client costs a thread, two file descriptors and about 20 KiB of memory. Each serial
# console is two clients, so the consoles of tenants must take only a part of them.
_MOST_CLIENTS = 1024


def serve(listener: socket.socket, engine: str, policy: Policy) -> None:
    """Serve the clients of a listening socket until the process ends.

    :param engine: path of the engine's socket
    """
    known = Known()
    slots = threading.BoundedSemaphore(_MOST_CLIENTS)
    while True:
        if not slots.acquire(blocking=False):
            LOG.warning("%d clients are connected; others have to wait", _MOST_CLIENTS)
            slots.acquire()
        connection, _ = listener.accept()
        relay = Relay(connection, engine, policy, known)
        threading.Thread(target=_run, args=(relay, slots), name="client", daemon=True).start()


def _run(relay: Relay, slots: threading.BoundedSemaphore) -> None:
    try:
        relay.run()
    finally:
        slots.release()
