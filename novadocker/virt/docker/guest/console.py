# SPDX-License-Identifier: Apache-2.0
"""Serial consoles: a TCP port for each instance whose console is requested, for nova-serialproxy.

One thread accepts the connections for all instances. Each connection has a thread of its own; their
number is limited.
"""

import contextlib
import ipaddress
import os
import pwd
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from nova import exception as nova_exception
from nova.console import serial
from oslo_log import log as logging

from novadocker import exception, privsep
from novadocker.linux import tcp_owner
from novadocker.linux.threads import Failures, Sparse
from novadocker.privsep.guest import files
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.model import Terminal

LOG = logging.getLogger(__name__)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

Opener = Callable[[], Terminal]
"""A function that opens the terminal of one instance."""

_MOST_CONNECTIONS = 128
_MOST_CONNECTIONS_EACH = 4
_MOST_OPENING = 4
_BACKLOG = 16
_LOOK_SECONDS = 30.0
_ACCEPT_TRIES = 5
_REFUSALS_SECONDS = 60.0
# A client that accepts no data for this time is disconnected.
_SEND_SECONDS = 30.0
_CHUNK_BYTES = 16384
# xterm reports its size in characters in this form, as the answer to CSI 18 t (XTWINOPS).
_REPORT = re.compile(rb"\x1b\[8;([0-9]{1,4});([0-9]{1,4})t")
# Data may end in the middle of a report. A single Escape is a key and not the beginning of one.
_BEGINNING = re.compile(rb"\x1b\[8(;[0-9]{0,4}){0,2}\Z")

_LOGINS = ("/bin/login", "/usr/bin/login")
# Every image with a shell has the last one.
_SHELLS = ("/bin/bash", "/bin/sh")


@dataclass
class _Console:
    """An instance's port, and the connections to it, oldest first."""

    container_id: str
    opener: Opener
    listener: socket.socket
    port: int
    used_at: float
    clients: list[socket.socket] = field(default_factory=list)


class Consoles:
    """The serial consoles of this host; safe to share between threads.

    :param address: address to listen on
    :param proxies: networks from which connections are accepted
    :param users: ids of the users whose connections from this host are accepted
    :param idle_seconds: a port without a connection is closed after this time
    """

    def __init__(
        self,
        engine: Engine,
        address: str,
        proxies: Sequence[Network],
        users: Collection[int],
        idle_seconds: float,
    ) -> None:
        self._engine = engine
        self._address = address
        self._proxies = proxies
        self._users = users
        self._refusals = Sparse(_REFUSALS_SECONDS)
        # Only the accepting thread uses it.
        self._failures = Failures("Failed to accept a console connection of server")
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._consoles: dict[str, _Console] = {}
        self._threads = 0
        # Many connections at once must not become as many requests to the engine.
        self._opening = threading.Semaphore(_MOST_OPENING)
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._selector = selectors.DefaultSelector()
        self._bell, self._rope = socket.socketpair()
        self._selector.register(self._bell, selectors.EVENT_READ, None)

    def open(self, instance_uuid: str, container_id: str, opener: Opener) -> int:
        """Open the port of an instance's console unless it is open, and return its number.

        :raises SocketPortRangeExhaustedException: no port is free
        :raises ConsoleTypeUnavailable: nova-compute is stopping
        """
        with self._lock:
            if self._stopped:
                raise nova_exception.ConsoleTypeUnavailable(console_type="serial")
            console = self._consoles.get(instance_uuid)
            if console is not None and console.container_id != container_id:
                self._close(instance_uuid)
                console = None
            if console is None:
                listener, port = self._listen()
                console = _Console(container_id, opener, listener, port, time.monotonic())
                self._consoles[instance_uuid] = console
                self._selector.register(listener, selectors.EVENT_READ, instance_uuid)
                self._wake()
            console.used_at = time.monotonic()
            return console.port

    def close(self, instance_uuid: str) -> None:
        """Close an instance's port and every connection to it.

        Does nothing if no port is open.
        """
        with self._lock:
            if instance_uuid in self._consoles:
                self._close(instance_uuid)

    def stop(self) -> None:
        """Close every console, and refuse to open another one. Idempotent."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            for instance_uuid in list(self._consoles):
                self._close(instance_uuid)
            self._rope.send(b".")
        if self._thread is not None:
            self._thread.join(_LOOK_SECONDS)
        for end in (self._selector, self._bell, self._rope):
            end.close()

    def _listen(self) -> tuple[socket.socket, int]:
        # Another program may bind the port after Nova has found it free.
        for _ in range(_ACCEPT_TRIES):
            port = serial.acquire_port(self._address)
            try:
                listener = socket.create_server((self._address, port), backlog=_BACKLOG)
            except OSError as error:
                LOG.warning("Failed to bind port %d for a serial console: %s", port, error)
                serial.release_port(self._address, port)
            else:
                listener.setblocking(False)
                return listener, port
        raise nova_exception.SocketPortRangeExhaustedException(host=self._address)

    def _close(self, instance_uuid: str) -> None:
        console = self._consoles.pop(instance_uuid)
        self._selector.unregister(console.listener)
        console.listener.close()
        serial.release_port(self._address, console.port)
        for client in console.clients:
            _hang_up(client)

    def _wake(self) -> None:
        """Interrupt the accepting thread's wait, so that it sees a change. Start it if needed."""
        self._rope.send(b".")
        if self._thread is None:
            self._thread = threading.Thread(target=self._accept, name="serial-console", daemon=True)
            self._thread.start()

    def _accept(self) -> None:
        while not self._stopped:
            for key, _ in self._selector.select(_LOOK_SECONDS):
                if key.data is None:
                    self._bell.recv(4096)
                else:
                    with self._failures.of(key.data):
                        self._take(key.data)
            self._close_idle()

    def _close_idle(self) -> None:
        oldest = time.monotonic() - self._idle_seconds
        with self._lock:
            self._failures.keep(self._consoles)
            for instance_uuid, console in list(self._consoles.items()):
                if not console.clients and console.used_at < oldest:
                    self._close(instance_uuid)

    def _take(self, instance_uuid: str) -> None:
        """Accept a connection and start its thread.

        If the instance has too many connections, close the oldest one.
        """
        with self._lock:
            console = self._consoles.get(instance_uuid)
            if console is None:
                return
            try:
                client, _ = console.listener.accept()
            except OSError:
                # The peer reset the connection before it was accepted.
                return
        # Without the lock, because this asks the kernel.
        try:
            refusal = self._refusal(client)
        except Exception:
            client.close()
            raise
        if refusal:
            client.close()
            # Anyone who reaches the port can be refused any number of times.
            if (others := self._refusals.count()) is not None:
                LOG.warning(
                    "Refused console connection: %s (further refusals since the last line: %d)",
                    refusal,
                    others,
                    instance_uuid=instance_uuid,
                )
            return
        with self._lock:
            if self._consoles.get(instance_uuid) is not console:
                client.close()
                return
            if self._threads >= _MOST_CONNECTIONS:
                with client, contextlib.suppress(OSError):
                    client.send(b"Too many consoles are open on this host.\r\n")
                return
            if len(console.clients) >= _MOST_CONNECTIONS_EACH:
                _hang_up(console.clients.pop(0))
            console.clients.append(client)
            self._threads += 1
        threading.Thread(
            target=self._serve, args=(console, client), name="serial-console-client", daemon=True
        ).start()

    def _refusal(self, client: socket.socket) -> str | None:
        """Return why a client may not connect; None if it may."""
        try:
            peer, own = client.getpeername()[0], client.getsockname()[0]
            address = ipaddress.ip_address(peer)
            if not any(address in network for network in self._proxies):
                return f"address {peer} is not in [docker] serial_console_proxies"
            user = tcp_owner.uid_of_peer(client)
        except OSError as error:
            return f"the kernel does not return the user of the connection: {error}"
        if user is None:
            is_on_this_host = address.is_loopback or peer == own
            return f"the client at {peer} has closed its socket" if is_on_this_host else None
        if user not in self._users:
            return f"user {user} of this host is not in [docker] serial_console_users"
        return None

    def _serve(self, console: _Console, client: socket.socket) -> None:
        try:
            with client:
                _keep_alive(client)
                self._connect(console, client)
        except (
            exception.EngineUnavailable,
            exception.EngineError,
            OSError,
            *privsep.UNANSWERED,
        ) as error:
            LOG.info("Closed console of container %s: %s", console.container_id, error)
        finally:
            with self._lock:
                self._threads -= 1
                console.used_at = time.monotonic()
                if client in console.clients:
                    console.clients.remove(client)

    def _connect(self, console: _Console, client: socket.socket) -> None:
        try:
            with self._opening:
                with self._lock:
                    if client not in console.clients:
                        # _take closed it for a newer connection during the wait.
                        return
                terminal = console.opener()
        except (exception.EngineUnavailable, exception.EngineError) as error:
            client.sendall(f"{error.format_message()}\r\n".encode())
            raise

        def resize(rows: int, columns: int) -> None:
            # The engine refuses the size of a terminal that has ended. The relay notices the end.
            with contextlib.suppress(exception.EngineError):
                self._engine.resize_terminal(terminal, rows, columns)

        try:
            with terminal.connection:
                client.sendall(terminal.early)
                relay(client, terminal.connection, resize)
        finally:
            # The engine does not end an exec's process when the client disconnects.
            process = self._engine.terminal_process(terminal)
            if process:
                files.hang_up(console.container_id, process)


def _hang_up(client: socket.socket) -> None:
    """Shut a connection down. The thread that serves it closes it."""
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)


def _keep_alive(client: socket.socket) -> None:
    """Enable keep-alive, so that the kernel detects a dead proxy within two minutes."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def parse_proxies(texts: Sequence[str]) -> tuple[Network, ...]:
    """Return the networks in an option's list of addresses, each with or without a prefix length.

    :raises InvalidConfiguration: an element is not an address
    """
    try:
        return tuple(ipaddress.ip_network(text, strict=False) for text in texts)
    except ValueError as error:
        raise exception.InvalidConfiguration(
            reason=f"[docker] serial_console_proxies: {error}"
        ) from error


def parse_users(texts: Sequence[str]) -> frozenset[int]:
    """Return the ids of an option's users, of root and of the user of this process.

    :param texts: names or ids of users
    :raises InvalidConfiguration: this host has no user with a name
    """
    users = {0, os.geteuid()}
    for text in texts:
        try:
            users.add(int(text) if text.isdecimal() else pwd.getpwnam(text).pw_uid)
        except KeyError as error:
            raise exception.InvalidConfiguration(
                reason=f"[docker] serial_console_users: this host has no user {text!r}"
            ) from error
    return frozenset(users)


def terminal_opener(engine: Engine, container_id: str, kind: str | None) -> Opener:
    """Return the function that opens the console of an instance.

    :param kind: the image property ``os_console``: ``login`` for a login prompt, ``shell`` for
        root's shell, ``process`` for the terminal of the first process. By default, a login prompt
        if the image has a program for it, else the terminal of the first process
    """

    def first_program(paths: Sequence[str]) -> str | None:
        # The engine can't look into a running server with a user namespace of its own.
        try:
            pid = engine.inspect_container(container_id).pid
            return next(
                (path for path in paths if files.has_program(container_id, pid, path)), None
            )
        except (OSError, ValueError, *privsep.UNANSWERED) as error:
            raise exception.EngineError(
                operation="to look for a program", reason=str(error)
            ) from error

    def open_console() -> Terminal:
        if kind == "process":
            return engine.attach_terminal(container_id)
        if kind == "shell":
            shell = first_program(_SHELLS) or _SHELLS[-1]
            return engine.open_terminal(container_id, (shell, "-l"))
        login = first_program(_LOGINS)
        if login is not None:
            return engine.open_terminal(container_id, (login,))
        if kind == "login":
            raise exception.EngineError(
                operation="to open a login prompt", reason="the image has no program /bin/login"
            )
        return engine.attach_terminal(container_id)

    return open_console


class SizeReports:
    """A filter that removes reports of the client's size from the client's input."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, tuple[int, int] | None]:
        """Return the input without reports, and the last reported size as rows and columns."""
        data = self._held + data
        sizes = [(int(rows), int(columns)) for rows, columns in _REPORT.findall(data)]
        data = _REPORT.sub(b"", data)
        beginning = _BEGINNING.search(data)
        self._held = beginning.group() if beginning else b""
        usable = [size for size in sizes if all(size)]
        return data.removesuffix(self._held), usable[-1] if usable else None


def relay(
    client: socket.socket, terminal: socket.socket, resize: Callable[[int, int], None]
) -> None:
    """Copy bytes in both directions until either side closes its connection.

    :param resize: called with the rows and columns that the client reports
    :raises OSError: a connection broke, or one side accepted no data for 30 seconds
    """
    reports = SizeReports()
    with selectors.DefaultSelector() as selector:
        for side, other in ((client, terminal), (terminal, client)):
            side.settimeout(_SEND_SECONDS)
            selector.register(side, selectors.EVENT_READ, (side, other))
        while True:
            for key, _ in selector.select():
                side, other = key.data
                data = side.recv(_CHUNK_BYTES)
                if not data:
                    return
                if side is client:
                    data, size = reports.feed(data)
                    if size:
                        resize(*size)
                other.sendall(data)
