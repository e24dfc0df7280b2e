# SPDX-License-Identifier: Apache-2.0
"""Requests to the kernel's rtnetlink, as many at once as there are; the messages are pyroute2's.

pyroute2's own sockets each run an event loop and enter it for every request, which takes longer
than what the kernel does for a port.
"""

import os
import socket
from collections.abc import Sequence
from itertools import islice
from typing import Any

from pyroute2.netlink import NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

# linux/netlink.h
_NETLINK_ROUTE = 0
# the answers to that many fit into a socket's buffer, whose usual size is 208 KiB
_MOST_AT_ONCE = 16
_LARGEST_ANSWER = 1 << 16
_DUMPS = 5


class Netlink:
    """A socket of rtnetlink in the network namespace that the thread is in when it is opened.

    It stays there wherever the thread goes.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE)
        self._parser = MarshalRtnl()

    def __enter__(self) -> "Netlink":
        """Return the socket itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the socket."""
        self._socket.close()

    def ask(self, *requests: Any, ignoring: int | None = None) -> list[list[Any]]:
        """Have the kernel carry out requests in this order; return what answers each.

        One that it refuses keeps it from none of the others.

        :param requests: see ``messages``; one that lists things goes alone
        :param ignoring: the error number of a refusal that is none
        :raises OSError: the first refusal
        """
        answers: list[list[Any]] = []
        refusals: list[int] = []
        left = iter(requests)
        while some := list(islice(left, _MOST_AT_ONCE)):
            self._send(some)
            found, codes = self._receive(len(some))
            answers += found
            refusals += codes
        for code in refusals:
            if code not in (0, ignoring):
                raise OSError(code, os.strerror(code))
        return answers

    def dump(self, request: Any) -> list[Any]:
        """Return all that a request lists.

        :raises OSError: the kernel refuses, or what is listed never stands still
        """
        for _ in range(_DUMPS):
            ((*found, end),) = self.ask(request)
            # what changes meanwhile can make the kernel skip what does not
            if not any(message["header"]["flags"] & NLM_F_DUMP_INTR for message in (*found, end)):
                return found
        raise InterruptedError("the kernel's list changes all the time")

    def _send(self, requests: Sequence[Any]) -> None:
        encoded = bytearray()
        for number, request in enumerate(requests):
            request["header"]["sequence_number"] = number
            request["header"]["pid"] = 0
            request.reset()
            request.encode()
            encoded += request.data
        self._socket.send(encoded)

    def _receive(self, count: int) -> tuple[list[list[Any]], list[int]]:
        """Return the answers to requests, and the error number of each, 0 for none."""
        answers: list[list[Any]] = [[] for _ in range(count)]
        codes: dict[int, int] = {}
        while len(codes) < count:
            for message in self._parser.parse(self._socket.recv(_LARGEST_ANSWER)):
                header = message["header"]
                number = header["sequence_number"]
                if header["type"] == NLMSG_ERROR:
                    codes[number] = abs(message["error"])
                else:
                    answers[number].append(message)
                    if header["type"] == NLMSG_DONE:
                        codes[number] = 0
        return answers, [codes[number] for number in range(count)]
