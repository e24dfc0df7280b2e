# SPDX-License-Identifier: Apache-2.0
"""Frames with arbitrary addresses: built here, sent by a server, received in a network."""

import contextlib
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

from devcloud.network import inside

PORT = 9999

# A server can only use a raw socket, and the image has Perl but no Python.
_SENDER = """
use Socket;
socket(my $socket, 17, SOCK_RAW, 0) or die "socket: $!";
open(my $file, "<", "/sys/class/net/eth0/ifindex") or die;
my $device = pack("S n i S C C a8", 17, 0x0800, <$file>, 1, 0, 6, pack("H*", "ffffffffffff"));
send($socket, pack("H*", "FRAME"), 0, $device) or die "send: $!";
"""

_LISTENER = """
import socket
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.settimeout(30)
receiver.bind(("0.0.0.0", PORT))
print("ready", flush=True)
while True:
    print(receiver.recv(100).decode(), flush=True)
"""


class Listener:
    """A UDP socket in a network's namespace.

    :ivar mac: MAC address of the namespace's device
    :ivar address: the namespace's IPv4 address in the network
    """

    def __init__(self, process: "subprocess.Popen[str]", mac: str, address: str) -> None:
        self.process, self.mac, self.address = process, mac, address

    def read_until(self, last: str) -> list[str]:
        """Return the received texts up to and including one text."""
        found: list[str] = []
        assert self.process.stdout is not None
        while last not in found:
            line = self.process.stdout.readline()
            assert line, f"the listener ended after {found}"
            found.append(line.strip())
        return found


@contextlib.contextmanager
def listening(namespace: str) -> Iterator[Listener]:
    """Listen in a namespace that has one device in the network ``10.0.0.0/24``."""
    shown = subprocess.run(
        inside(namespace, ["ip", "-json", "address"]), capture_output=True, text=True, check=True
    ).stdout
    mac, address = next(
        (link["address"], entry["local"])
        for link in json.loads(shown)
        for entry in link["addr_info"]
        if entry["local"].startswith("10.0.0.")
    )
    command = inside(namespace, [sys.executable, "-c", _LISTENER.replace("PORT", str(PORT))])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Listener(process, mac, address)
        process.terminate()


def datagram(mac: str, source: str, to_mac: str, to: str, text: str, vlan: int = 0) -> bytes:
    """Return an Ethernet frame with an IPv4 UDP datagram.

    :param vlan: VLAN id of the frame's tag (IEEE 802.1Q); 0 means no tag
    """
    payload = text.encode()
    udp = struct.pack("!HHHH", PORT, PORT, 8 + len(payload), 0) + payload
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0)
    header += socket.inet_aton(source) + socket.inet_aton(to)
    header = header[:10] + struct.pack("!H", _checksum(header)) + header[12:]
    ethernet = bytes.fromhex(to_mac.replace(":", "") + mac.replace(":", ""))
    tag = struct.pack("!HH", 0x8100, vlan) if vlan else b""
    return ethernet + tag + b"\x08\x00" + header + udp


def sender(frame: bytes) -> str:
    """Return the program that sends a frame."""
    return _SENDER.replace("FRAME", frame.hex())


def _checksum(header: bytes) -> int:
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
