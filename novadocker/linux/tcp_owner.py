# SPDX-License-Identifier: Apache-2.0
"""The user at the other end of a TCP connection within this host, from the kernel (sock_diag(7)).

pyroute2 can only list all sockets of a host, of which there may be hundreds of thousands.
"""

import errno
import os
import socket
import struct

_SECONDS = 5.0
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_TCP_ESTABLISHED = 1
_ALL_STATES = _NO_COOKIE = 0xFFFFFFFF

# struct nlmsghdr
_HEADER = struct.Struct("=IHHII")
# struct inet_diag_req_v2 to the ports, which are in network byte order like the addresses
_REQUEST = struct.Struct("=BBxxI")
# struct inet_diag_sockid: source, destination, interface and cookie
_PORTS = struct.Struct("!HH")
_IDENTITY = struct.Struct("=4s16s16sIII")
# struct inet_diag_msg: state; user id and inode after the identity and three numbers
_STATE = struct.Struct("=xB")
_OWNER = struct.Struct("=II")
_OWNER_AT = 4 + _IDENTITY.size + 12


def uid_of_peer(connection: socket.socket) -> int | None:
    """Return the id of the user that opened the socket at the other end of a connection.

    None if no process in this process's network namespace has the other end open: it is on another
    host or in another namespace, or was closed.

    :raises OSError: the kernel does not answer, or lacks the module ``tcp_diag``
    """
    own, peer = connection.getsockname(), connection.getpeername()
    addresses = [socket.inet_pton(connection.family, end[0]) for end in (peer, own)]
    ports = _PORTS.pack(peer[1], own[1])
    identity = _IDENTITY.pack(ports, *addresses, 0, _NO_COOKIE, _NO_COOKIE)
    request = _REQUEST.pack(connection.family, socket.IPPROTO_TCP, _ALL_STATES) + identity
    length = _HEADER.size + len(request)
    header = _HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(_SECONDS)
        netlink.sendto(header + request, (0, 0))
        answer = netlink.recv(8192)
    _, kind, *_ = _HEADER.unpack_from(answer)
    content = answer[_HEADER.size :]
    if kind == _NLMSG_ERROR:
        (number,) = struct.unpack_from("=i", content)
        if -number == errno.ENOENT:
            return None
        raise OSError(-number, os.strerror(-number))
    (state,) = _STATE.unpack_from(content)
    uid, inode = _OWNER.unpack_from(content, _OWNER_AT)
    # The kernel returns root for a socket that its process has closed. If no socket has the two
    # addresses, it returns a socket that listens on the first one.
    is_open = state == _TCP_ESTABLISHED and inode != 0
    return int(uid) if is_open else None
