# SPDX-License-Identifier: Apache-2.0
"""A client of Open vSwitch: JSON-RPC as of RFC 7047, to its database and to its daemons.

Each function opens a connection of its own, waits a bounded time and closes the connection, so that
neither a thread nor a copy of the database outlives the call. Connections have Open vSwitch's form,
as ``tcp:127.0.0.1:6640`` or ``unix:/run/openvswitch/db.sock``.
"""

import codecs
import errno
import json
import logging
import os
import socket
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

LOG = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
"""The time for which a call waits by default."""

_DATABASE = "Open_vSwitch"
SOUTHBOUND = "OVN_Southbound"
"""The database of OVN that its controllers read, for ``select``."""

# ovsdb-server(7): a relative path of a socket starts here, and a port may be left out
_RUN_DIRECTORY = "/run/openvswitch"
_TCP_PORT = 6640
_PART_BYTES = 1 << 16
# A row has some hundred bytes, and the database has a few rows for each port of a host.
_LARGEST_ANSWER = 4 << 20
# A fault has so many characters of a malformed answer.
_SHOWN = 200

Row = dict[str, Any]
"""A row as RFC 7047, section 5.1, writes it.

A reference is ``["uuid", text]``, a map ``["map", pairs]``, and a set ``["set", values]``. A set of
one value is written as the value alone.
"""


@dataclass(frozen=True)
class Select:
    """A query: columns of the rows of a table that meet all conditions."""

    table: str
    columns: Sequence[str]
    where: Sequence[Sequence[object]] = ()

    def operation(self) -> dict[str, object]:
        """Return the operation of a transaction, see RFC 7047, section 5.2.2."""
        return {
            "op": "select",
            "table": self.table,
            "where": list(self.where),
            "columns": list(self.columns),
        }


_GENERATIONS = Select("Open_vSwitch", ("next_cfg", "cur_cfg"))


def call(
    connection: str, method: str, parameters: Sequence[object], seconds: float = ANSWER_SECONDS
) -> Any:
    """Return the result of a method of the database or of a daemon's control socket.

    :raises OSError: there is no answer within ``seconds``, or the answer is an error or too large
    """
    request = {"id": 0, "method": method, "params": list(parameters)}
    with _Channel(connection, seconds) as channel:
        channel.send(request)
        while True:
            answer = channel.receive()
            if not isinstance(answer, dict):
                raise _refusal(f"{connection} answers {repr(answer)[:_SHOWN]} to {method}")
            if answer.get("method") == "echo":
                # Because the database disconnects a client that does not echo (RFC 7047, section
                # 4.1.11), a call that waits for long replies.
                echo = {"id": answer.get("id"), "result": answer.get("params"), "error": None}
                channel.send(echo)
            elif answer.get("id") == request["id"]:
                if answer.get("error") is not None:
                    raise _refusal(
                        f"{connection} refuses {method}: {repr(answer['error'])[:_SHOWN]}"
                    )
                return answer.get("result")


def transact(
    connection: str,
    *operations: Mapping[str, object],
    seconds: float = ANSWER_SECONDS,
    database: str = _DATABASE,
) -> list[Row]:
    """Send operations to the database as one transaction; return the result of each.

    :param database: name of the database at this connection
    :raises OSError: there is no answer within ``seconds``, or the database refuses an operation,
        and so the whole transaction
    """
    results = call(connection, "transact", [database, *operations], seconds)
    # Because an error of the transaction as a whole is one more result, the number is compared.
    if (
        not isinstance(results, list)
        or len(results) != len(operations)
        or not all(isinstance(found, dict) and found.get("error") is None for found in results)
    ):
        raise _malformed(results)
    return results


def select(
    connection: str,
    *queries: Select,
    seconds: float = ANSWER_SECONDS,
    database: str = _DATABASE,
) -> list[list[Row]]:
    """Return the rows of each query, all read in one transaction.

    :param database: name of the database at this connection
    :raises OSError: there is no answer within ``seconds``, or the answer is malformed
    """
    operations = (query.operation() for query in queries)
    results = transact(connection, *operations, seconds=seconds, database=database)
    return [_rows(found, query.columns) for found, query in zip(results, queries, strict=True)]


def has_port(connection: str, bridge: str, port: str, seconds: float = ANSWER_SECONDS) -> bool:
    """Return True if a bridge has a port of this name.

    :raises OSError: there is no answer within ``seconds``, or the answer is malformed
    """
    return _find_port(connection, bridge, port, seconds) is not None


def delete_port(connection: str, bridge: str, port: str, seconds: float = ANSWER_SECONDS) -> None:
    """Delete a port from a bridge, but not its device. Does nothing if there is no such port.

    Waits until ovs-vswitchd has applied the deletion, as ovs-vsctl(8) does. Logs a warning if
    ovs-vswitchd does not apply it in time.

    :raises OSError: the database does not answer within ``seconds``, or the answer is malformed
    """
    deadline = time.monotonic() + seconds
    reference = _find_port(connection, bridge, port, seconds)
    if reference is None:
        return
    *_, found = transact(
        connection,
        # Because the database deletes ports and interfaces that no bridge refers to, their rows
        # need no operation.
        {
            "op": "mutate",
            "table": "Bridge",
            "where": [["name", "==", bridge]],
            "mutations": [["ports", "delete", reference]],
        },
        {
            "op": "mutate",
            "table": "Open_vSwitch",
            "where": [],
            "mutations": [["next_cfg", "+=", 1]],
        },
        _GENERATIONS.operation(),
        seconds=deadline - time.monotonic(),
    )
    try:
        _wait_for_switch(connection, *_generations(found), deadline)
    except OSError as error:
        # Because the deletion stands, the function returns.
        LOG.warning("Failed to wait until ovs-vswitchd deletes port %s: %s", port, error)


def _wait_for_switch(connection: str, wanted: int, applied: int, deadline: float) -> None:
    """Wait until ovs-vswitchd has applied a generation of the database.

    :param wanted: a value of ``next_cfg``, which a client increments
    :param applied: the value of ``cur_cfg``, which ovs-vswitchd sets to the one it has applied
    :raises TimeoutError: it has not at the deadline
    """
    while applied < wanted:
        left = deadline - time.monotonic()
        *_, found = transact(
            connection,
            {
                "op": "wait",
                # Because this client gives up before the database does, the time-out is an OSError.
                "timeout": int(left * 1000) + 1000,
                "table": "Open_vSwitch",
                "where": [],
                "columns": ["cur_cfg"],
                "until": "!=",
                "rows": [{"cur_cfg": applied}],
            },
            _GENERATIONS.operation(),
            seconds=left,
        )
        _, applied = _generations(found)


def _generations(result: Row) -> tuple[int, int]:
    rows = _rows(result, _GENERATIONS.columns)
    if len(rows) != 1 or not all(isinstance(number, int) for number in rows[0].values()):
        raise _malformed(result)
    return rows[0]["next_cfg"], rows[0]["cur_cfg"]


def _find_port(connection: str, bridge: str, port: str, seconds: float) -> list[str] | None:
    """Return the reference to a port of a bridge, or None if the bridge has no such port."""
    bridges, ports = select(
        connection,
        Select("Bridge", ("ports",), [["name", "==", bridge]]),
        Select("Port", ("_uuid",), [["name", "==", port]]),
        seconds=seconds,
    )
    of_bridge = [reference for row in bridges for reference in values(row["ports"])]
    return next((row["_uuid"] for row in ports if row["_uuid"] in of_bridge), None)


def values(column: object) -> list[Any]:
    """Return the values of a set in a row.

    :raises OSError: the column is malformed
    """
    if isinstance(column, list) and column[:1] == ["set"]:
        if len(column) != 2 or not isinstance(column[1], list):
            raise _malformed(column)
        return column[1]
    return [column]


def _rows(result: Row, columns: Sequence[str]) -> list[Row]:
    rows = result.get("rows")
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and row.keys() >= set(columns) for row in rows
    ):
        raise _malformed(result)
    return rows


def _malformed(answer: object) -> OSError:
    return _refusal(f"Open vSwitch's database sent a malformed answer: {repr(answer)[:_SHOWN]}")


def _refusal(reason: str) -> OSError:
    return OSError(errno.EPROTO, reason)


class _Channel:
    """A connection for JSON messages that is usable for a limited time."""

    def __init__(self, connection: str, seconds: float) -> None:
        self._connection = connection
        self._seconds = max(0.0, seconds)
        self._deadline = time.monotonic() + self._seconds
        with self._naming():
            self._socket = _connect(connection, self._left())
        # Because a part may end within a character, the decoder keeps its beginning.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""

    def __enter__(self) -> "_Channel":
        """Return the connection itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the connection."""
        self._socket.close()

    def send(self, message: Mapping[str, object]) -> None:
        """Send a message."""
        with self._naming():
            self._socket.settimeout(self._left())
            self._socket.sendall(json.dumps(message).encode())

    def receive(self) -> Any:
        """Return the next message."""
        while True:
            try:
                message, end = json.JSONDecoder().raw_decode(self._text)
            except ValueError as incomplete:
                if len(self._text) > _LARGEST_ANSWER:
                    raise _refusal(f"{self._connection} answers too much") from incomplete
                self._text += self._decoder.decode(self._receive_part())
            except RecursionError as error:
                raise _refusal(f"{self._connection} answers too deeply nested JSON") from error
            else:
                self._text = self._text[end:].lstrip()
                return message

    def _receive_part(self) -> bytes:
        with self._naming():
            self._socket.settimeout(self._left())
            part = self._socket.recv(_PART_BYTES)
            if not part:
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return part

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Add the connection to a fault of the body."""
        try:
            yield
        except TimeoutError as error:
            cause = f"no answer within {self._seconds:g} s"
            raise self._fault(errno.ETIMEDOUT, cause) from error
        except OSError as error:
            raise self._fault(error.errno or errno.EINVAL, error.strerror or str(error)) from error

    def _fault(self, number: int, cause: str) -> OSError:
        return OSError(number, f"Open vSwitch cannot be asked at {self._connection}: {cause}")


def _connect(connection: str, seconds: float) -> socket.socket:
    """Return a connected socket.

    :raises OSError: no process listens, or the connection is malformed
    """
    kind, _, address = connection.partition(":")
    if kind == "tcp":
        try:
            parts = urllib.parse.urlsplit(f"//{address}")
            host, port = parts.hostname, parts.port or _TCP_PORT
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error)) from error
        return socket.create_connection((host, port), timeout=seconds)
    if kind != "unix":
        raise OSError(errno.EAFNOSUPPORT, "only tcp: and unix: are supported")
    connected = socket.socket(socket.AF_UNIX)
    try:
        connected.settimeout(seconds)
        connected.connect(os.path.join(_RUN_DIRECTORY, address))
    except OSError:
        connected.close()
        raise
    return connected
