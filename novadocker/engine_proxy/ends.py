# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 on a connected socket, and the wait for one of two sockets.

h11 parses strictly, and each message is written anew from what was parsed, so both ends agree on
where a message ends.
"""

import select
import socket
import time

import h11

STALL_SECONDS = 3600.0
"""Time within which an end must accept or send data in the middle of a message."""

_CHUNK_BYTES = 256 << 10
_LARGEST_HEAD = 64 << 10


class Gone(Exception):
    """An end closed its connection or broke the protocol, or waits for too long."""


class End:
    """One end of the proxy: a connected socket and the state of HTTP on it."""

    def __init__(
        self, connection: socket.socket, role: type[h11.CLIENT] | type[h11.SERVER]
    ) -> None:
        self.socket = connection
        self.socket.settimeout(STALL_SECONDS)
        self.http = h11.Connection(role, _LARGEST_HEAD)

    def receive(self) -> None:
        """Receive data, which the next events are parsed from."""
        self.http.receive_data(self.socket.recv(_CHUNK_BYTES))

    def send(self, event: h11.Event) -> None:
        """Send an event."""
        for part in self.http.send_with_data_passthrough(event) or ():
            self.socket.sendall(part)

    def is_readable(self) -> bool:
        """Return True if data or the end of the connection arrived."""
        return bool(_poll({self.socket: select.POLLIN}, 0))

    def await_data(self, seconds: float) -> None:
        """Wait for data and receive it.

        :raises Gone: none arrived in time
        """
        if not _poll({self.socket: select.POLLIN}, max(seconds, 0)):
            raise Gone("no data arrived in time")
        self.receive()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self.socket.close()


def await_either(sender: End, receiver: End, both: bool) -> None:
    """Wait for data and receive it.

    :param both: True to wait for data of the receiver, too; otherwise only its end is noticed
    :raises Gone: the receiver has closed its connection, or no data arrived in time
    """
    # poll() reports a closed connection, too, if no event is wanted.
    wanted = {sender.socket: select.POLLIN, receiver.socket: select.POLLIN if both else 0}
    ready = _poll(wanted, STALL_SECONDS if both else None)
    if not ready:
        raise Gone("no data arrived in time")
    if sender.socket in ready:
        sender.receive()
    if receiver.socket in ready:
        if not both:
            raise Gone("the client has closed its connection")
        receiver.receive()


def linger(connection: socket.socket, seconds: float) -> None:
    """Close a connection when its peer has read the answer.

    If the connection were closed while data of the peer is unread, the peer would get an error
    instead of the answer.
    """
    until = time.monotonic() + seconds
    try:
        connection.shutdown(socket.SHUT_WR)
        while _poll({connection: select.POLLIN}, max(until - time.monotonic(), 0)):
            if not connection.recv(_CHUNK_BYTES):
                break
    except OSError:
        # The peer has closed its end.
        return
    finally:
        connection.close()


def pump(first: socket.socket, second: socket.socket, early: dict[socket.socket, bytes]) -> None:
    """Copy bytes in both directions until a connection is closed.

    :param early: bytes that have arrived for a socket
    """
    peers = {first: second, second: first}
    waiting = {end: early.get(end, b"") for end in peers}
    ended: set[socket.socket] = set()
    closed: set[socket.socket] = set()
    for end in peers:
        end.setblocking(False)
    while waiting[first] or waiting[second] or len(ended) < len(peers):
        wanted = {
            end: (select.POLLOUT if waiting[end] else 0)
            | (select.POLLIN if end not in ended and not waiting[peers[end]] else 0)
            for end in peers
        }
        # poll() would report a closed end again and again.
        concerned = {end: events for end, events in wanted.items() if events or end not in closed}
        for end, happened in _poll(concerned, None).items():
            if waiting[end] and happened & (select.POLLOUT | select.POLLERR):
                waiting[end] = waiting[end][end.send(waiting[end]) :]
            if wanted[end] & select.POLLIN and happened & (select.POLLIN | select.POLLHUP):
                data = end.recv(_CHUNK_BYTES)
                waiting[peers[end]] = data
                if not data:
                    ended.add(end)
                    peers[end].shutdown(socket.SHUT_WR)
            elif happened & select.POLLHUP:
                if end in ended:
                    return
                closed.add(end)


def _poll(wanted: dict[socket.socket, int], seconds: float | None) -> dict[socket.socket, int]:
    """Return what happened to sockets, by socket; empty after ``seconds``."""
    poll = select.poll()
    numbers = {end.fileno(): end for end in wanted}
    for end, events in wanted.items():
        poll.register(end, events)
    milliseconds = None if seconds is None else int(seconds * 1000)
    return {numbers[number]: happened for number, happened in poll.poll(milliseconds)}
