# SPDX-License-Identifier: Apache-2.0
"""Takes what ``novadocker-exporter`` tells of servers: it watches the kernel, nova-compute not."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path

from oslo_log import log as logging

from novadocker import incident_socket

LOG = logging.getLogger(__name__)


class IncidentListener:
    """A thread that waits for the exporter, which need not be there.

    :param state_path: nova-compute's, with the socket
    :param add: takes the kind and the server's UUID of each incident
    """

    def __init__(self, state_path: Path, add: Callable[[str, str], None]) -> None:
        self._state_path = state_path
        self._add = add
        self._listening: socket.socket | None = None
        self._stopped = False

    def start(self) -> None:
        """Begin to listen; a folder that takes no socket costs what the exporter tells alone."""
        try:
            self._listening = incident_socket.listen(self._state_path)
        except OSError as error:
            LOG.warning("What novadocker-exporter sees is in no action log: %s", error)
            return
        # a daemon: it must not keep a stopping nova-compute
        threading.Thread(
            target=self._run, args=(self._listening,), name="docker-incidents", daemon=True
        ).start()

    def stop(self) -> None:
        """Listen no more."""
        self._stopped = True
        if self._listening:
            # wakes the thread, which closes it
            self._listening.shutdown(socket.SHUT_RDWR)

    def _run(self, listening: socket.socket) -> None:
        with listening:
            while not self._stopped:
                datagram = listening.recv(incident_socket.LARGEST)
                if told := incident_socket.parse(datagram):
                    self._add(*told)
