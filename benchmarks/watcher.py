# SPDX-License-Identifier: Apache-2.0
"""A server watched from outside: its counting, its stream and its answers.

A program in the server sends one record per millisecond over TCP, each with the time of its
creation, which is the server's counting. ``ping`` sends a request a hundred times a second.
"""

import contextlib
import itertools
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import docker

from devcloud.network import NAMESPACES, inside
from novadocker.linux import namespaces

STREAM, SINK, SOURCE = 7001, 7002, 7003

_RECORD = 1400
_PING_SECONDS = 0.01
_CONNECT_SECONDS = 10
_CHUNK = b"x" * (1 << 16)

# The image has only perl-base, which lacks Time::HiRes.
_PROGRAM = f"""
use IO::Socket::INET; use Socket qw(IPPROTO_TCP TCP_NODELAY);
$SIG{{PIPE}} = 'IGNORE';
sub now {{ my $t = pack('q2'); syscall(228, 0, $t); my ($s, $n) = unpack('q2', $t); $s + $n / 1e9 }}
my %do = (
    {STREAM} => sub {{
        my $c = shift;
        $c->setsockopt(IPPROTO_TCP, TCP_NODELAY, 1);
        select(undef, undef, undef, 0.001) while syswrite $c, pack('d x{_RECORD - 8}', now());
    }},
    {SINK} => sub {{ while (sysread $_[0], my $b, 65536) {{}} }},
    {SOURCE} => sub {{ while (syswrite $_[0], 'x' x 65536) {{}} }},
);
for my $port (keys %do) {{
    next if fork;
    my $l = IO::Socket::INET->new(LocalPort => $port, Listen => 1, ReuseAddr => 1) or die;
    while (my $c = $l->accept) {{ $do{{$port}}->($c) }}
}}
"""


@dataclass(frozen=True)
class Seen:
    """The gaps of a server during a period, in seconds.

    :ivar lost: number of packets without an answer
    :ivar count_gap: longest time in which the server did not count
    :ivar stream_gap: longest time in which no record arrived
    :ivar ping_gap: longest time without an answer
    """

    lost: int
    count_gap: float
    stream_gap: float
    ping_gap: float


class Watcher:
    """Records the time of each arrival from a server."""

    def __init__(self, stream: socket.socket, ping: "subprocess.Popen[str]") -> None:
        self._stream, self._ping = stream, ping
        self._records: list[tuple[float, float]] = []
        self._answers: list[tuple[float, int]] = []
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._read_stream, self._read_ping)
        ]
        for thread in self._threads:
            thread.start()

    def seen(self, begin: float, end: float) -> Seen:
        """Return the gaps between two moments, which are ``time.time``'s."""
        # Packets that were in flight at the end must arrive first.
        time.sleep(10 * _PING_SECONDS)
        records = [record for record in self._records if begin <= record[0] <= end]
        answers = [answer for answer in self._answers if begin <= answer[0] <= end]
        numbers = [number for _, number in answers]
        return Seen(
            lost=numbers[-1] - numbers[0] + 1 - len(set(numbers)),
            count_gap=_longest([inside for _, inside in records]),
            stream_gap=_longest([arrival for arrival, _ in records]),
            ping_gap=_longest([moment for moment, _ in answers]),
        )

    def join(self) -> None:
        """Wait until the readers have ended."""
        for thread in self._threads:
            thread.join()

    def _read_stream(self) -> None:
        with self._stream.makefile("rb") as records:
            while len(record := records.read(_RECORD)) == _RECORD:
                self._records.append((time.time(), struct.unpack_from("d", record)[0]))

    def _read_ping(self) -> None:
        assert self._ping.stdout is not None
        for line in self._ping.stdout:
            if found := re.match(r"\[([\d.]+)\] .*icmp_seq=(\d+) ", line):
                self._answers.append((float(found[1]), int(found[2])))


def serve(engine: docker.APIClient, container: str) -> None:
    """Start the program in a server."""
    call = engine.exec_create(container, ["perl", "-e", _PROGRAM])["Id"]
    engine.exec_start(call, detach=True)


@contextlib.contextmanager
def watching(namespace: str, address: str) -> Iterator[Watcher]:
    """Watch a server from a network namespace while the body runs."""
    stream = connect(namespace, address, STREAM)
    command = ["ping", "-n", "-D", "-i", str(_PING_SECONDS), address]
    ping = subprocess.Popen(inside(namespace, command), stdout=subprocess.PIPE, text=True)
    watcher = Watcher(stream, ping)
    try:
        yield watcher
    finally:
        ping.send_signal(signal.SIGINT)
        ping.wait()
        stream.shutdown(socket.SHUT_RDWR)
        watcher.join()
        stream.close()


def rate(
    namespace: str, address: str, port: int, counter: Callable[[], int], seconds: float
) -> float:
    """Send to a server or receive from it at full speed; return the bytes per second.

    :param port: ``SINK`` or ``SOURCE``
    :param counter: returns the number of bytes of frames that passed
    """
    with connect(namespace, address, port) as peer:
        peer.settimeout(1)
        end = time.monotonic() + seconds
        # The first second fills queues and uses up a burst.
        start = time.monotonic() + 1
        first: tuple[float, int] | None = None
        while (now := time.monotonic()) < end:
            if first is None and now > start:
                first = now, counter()
            if port == SINK:
                peer.send(_CHUNK)
            else:
                peer.recv(len(_CHUNK))
        assert first is not None
        return (counter() - first[1]) / (time.monotonic() - first[0])


def connect(namespace: str, address: str, port: int) -> socket.socket:
    """Connect to a server from a network namespace; its program may still be starting.

    :raises OSError: no connection is accepted within ten seconds
    """
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            found: socket.socket = namespaces.run_in_thread(_connect, namespace, address, port)
            return found
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _connect(namespace: str, address: str, port: int) -> socket.socket:
    namespaces.enter_namespace_at(str(NAMESPACES / namespace))
    return socket.create_connection((address, port), _CONNECT_SECONDS)


def _longest(moments: list[float]) -> float:
    return max(later - earlier for earlier, later in itertools.pairwise(moments))
