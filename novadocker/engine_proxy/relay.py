# SPDX-License-Identifier: Apache-2.0
"""One client of the proxy: each of its requests is judged and passed to the engine."""

import json
import logging
import socket
import struct
import time
from typing import Any

import h11

from novadocker.engine_proxy import ends, forms, table
from novadocker.engine_proxy.archives import ImageCheck
from novadocker.engine_proxy.ends import End, Gone
from novadocker.engine_proxy.engine import Engine, EngineHost, Known
from novadocker.engine_proxy.forms import Refused
from novadocker.engine_proxy.policy import Answered, Policy
from novadocker.engine_proxy.table import Asked, Body, Request, Rule
from novadocker.linux.threads import Sparse

LOG = logging.getLogger(__name__)

# nova-compute keeps a connection in each of its threads, and repeats most tasks after 60 s.
_IDLE_SECONDS = 600.0
_HEAD_SECONDS = 10.0
_BODY_SECONDS = 30.0
_LINGER_SECONDS = 2.0
_LARGEST_BODY = 1 << 20
_JSON = ("Content-Type", "application/json")
# What a message says about its own connection.
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"trailer"}
)
_PASSED = frozenset({b"content-length", b"transfer-encoding", b"x-registry-auth"})
_UPGRADE = [("Connection", "Upgrade"), ("Upgrade", "tcp")]
_PEER = struct.Struct("3i")

_refusals = Sparse(1.0)


class Relay:
    """A connection of a client.

    :param engine: path of the engine's socket
    """

    def __init__(
        self, connection: socket.socket, engine: str, policy: Policy, known: Known
    ) -> None:
        self._client = End(connection, h11.SERVER)
        self._engine = Engine(engine)
        self._policy = policy
        self._known = known
        self._method = b""

    def run(self) -> None:
        """Serve the client until it or the proxy closes the connection.

        If the engine does not answer, the client gets no answer either, because an engine that is
        away must not look like one that refuses.
        """
        try:
            while self._serve_request():
                pass
        except (Gone, OSError, h11.ProtocolError) as error:
            LOG.debug("Closing the connection of a client: %s", error)
        finally:
            self._engine.close()
            self._client.close()

    def _serve_request(self) -> bool:
        """Serve one request. Return False if the connection serves no other one."""
        try:
            head = self._read_head()
        except h11.RemoteProtocolError as error:
            self._log_refusal("a malformed request", str(error))
            self._answer(400, _message(str(error)))
            return self._close_politely()
        if head is None:
            return False
        self._method = head.method
        shown = f"{head.method.decode()} {head.target.decode('latin-1')}"
        try:
            request, rule, body = self._judge(head)
            self._forward(request, rule, head, body)
        except Refused as refusal:
            self._log_refusal(shown, str(refusal))
            self._engine.close()
            if self._client.http.our_state is not h11.SEND_RESPONSE:
                return False
            self._answer(403, _message(f"novadocker-engine-proxy refuses the request: {refusal}"))
        except Answered as answered:
            self._answer(answered.status, answered.body)
        return self._next_request()

    def _read_head(self) -> h11.Request | None:
        """Return the head of the next request; None if the client sends none."""
        until = 0.0
        while True:
            event = self._client.http.next_event()
            if isinstance(event, h11.Request):
                return event
            if event is not h11.NEED_DATA:
                return None
            if not until and self._client.http.trailing_data[0]:
                until = time.monotonic() + _HEAD_SECONDS
            self._client.await_data(until - time.monotonic() if until else _IDLE_SECONDS)

    def _judge(self, head: h11.Request) -> tuple[Request, Rule, Any]:
        """Return a request that the driver makes, its rule and its body.

        :raises Refused: the driver makes no such request
        """
        request = table.read(head.method.decode(), head.target.decode("latin-1"))
        rule, subjects = table.find(request)
        headers = dict(head.headers)
        if b"expect" in headers:
            raise Refused("the driver sends no header Expect")
        if rule.upgrades and headers.get(b"upgrade", b"").lower() != b"tcp":
            raise Refused("the driver asks for an upgrade to tcp")
        body = None
        if rule.body is Body.EMPTY and self._read_body(0):
            raise Refused("the request has a body")
        if rule.body is Body.JSON:
            body = forms.parse(self._read_body(_LARGEST_BODY))
        host = EngineHost(self._engine, self._client, request.prefix, self._known)
        rule.judge(Asked(request, subjects, body, self._policy, host))
        return request, rule, body

    def _read_body(self, most: int) -> bytes:
        until = time.monotonic() + _BODY_SECONDS
        content = b""
        while True:
            event = self._client.http.next_event()
            if event is h11.NEED_DATA:
                self._client.await_data(until - time.monotonic())
            elif isinstance(event, h11.Data):
                content += event.data
                if len(content) > most:
                    raise Refused(f"the body has more than {most} bytes")
            elif isinstance(event, h11.EndOfMessage):
                return content
            else:
                raise Gone("the client has closed its connection")

    def _forward(self, request: Request, rule: Rule, head: h11.Request, body: Any) -> None:
        """Pass a request to the engine and the engine's answer to the client."""
        engine = self._engine.connect()
        content = b"" if body is None else json.dumps(body).encode()
        uploads = rule.body in (Body.STREAM, Body.IMAGE)
        engine.send(
            h11.Request(
                method=request.method,
                target=request.target,
                headers=[("Host", "docker"), *_headers(rule, head, len(content))],
            )
        )
        if content:
            engine.send(h11.Data(data=content))
        if not uploads:
            engine.send(h11.EndOfMessage())
        check = ImageCheck() if rule.body is Body.IMAGE else None
        while True:
            if uploads and (event := self._client.http.next_event()) is not h11.NEED_DATA:
                uploads = _upload(event, engine, check)
            elif (event := engine.http.next_event()) is not h11.NEED_DATA:
                if self._pass_answer(event, engine):
                    break
            else:
                ends.await_either(engine, self._client, both=uploads)
        self._engine.release()

    def _pass_answer(self, event: Any, engine: End) -> bool:
        """Pass a part of the engine's answer to the client. Return True if it is the last one."""
        client = self._client
        if isinstance(event, h11.InformationalResponse):
            if event.status_code != 101:
                return False
            client.send(
                h11.InformationalResponse(
                    status_code=101, headers=[*_end_to_end(event), *_UPGRADE], reason=event.reason
                )
            )
            early = {
                client.socket: engine.http.trailing_data[0],
                engine.socket: client.http.trailing_data[0],
            }
            ends.pump(client.socket, engine.socket, early)
            raise Gone("the terminal was closed")
        if isinstance(event, h11.Response):
            client.send(
                h11.Response(
                    status_code=event.status_code, headers=_end_to_end(event), reason=event.reason
                )
            )
            return False
        if isinstance(event, h11.Data | h11.EndOfMessage):
            client.send(event)
            return isinstance(event, h11.EndOfMessage)
        raise Gone("the engine has closed its connection")

    def _answer(self, status: int, body: bytes) -> None:
        """Answer a request in place of the engine."""
        http = self._client.http
        is_read = http.their_state is h11.DONE
        headers = [_JSON, ("Content-Length", str(len(body)))]
        self._client.send(
            h11.Response(
                status_code=status,
                headers=headers if is_read else [*headers, ("Connection", "close")],
            )
        )
        if self._method != b"HEAD":
            self._client.send(h11.Data(data=body))
        self._client.send(h11.EndOfMessage())

    def _next_request(self) -> bool:
        """Prepare for the next request. Return False if the connection serves no other one."""
        http = self._client.http
        if http.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
            http.start_next_cycle()
            return True
        return self._close_politely()

    def _close_politely(self) -> bool:
        ends.linger(self._client.socket, _LINGER_SECONDS)
        return False

    def _log_refusal(self, what: str, reason: str) -> None:
        others = _refusals.count()
        if others is None:
            return
        credentials = self._client.socket.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size
        )
        process, user, _ = _PEER.unpack(credentials)
        LOG.warning(
            "Refused %.200r of process %d of user %d: %.400s (%d refusals before are not logged)",
            what,
            process,
            user,
            reason,
            others,
        )


def _headers(rule: Rule, head: h11.Request, size: int) -> list[tuple[str, str]]:
    """Return the headers of a request that the engine gets.

    :param size: of the body, unless it streams
    """
    found = [
        (name.decode(), value.decode("latin-1")) for name, value in head.headers if name in _PASSED
    ]
    if rule.body in (Body.EMPTY, Body.JSON):
        found = [pair for pair in found if pair[0] == "x-registry-auth"]
        if size:
            found.append(_JSON)
        if rule.method != "GET":
            found.append(("Content-Length", str(size)))
    return [*found, *_UPGRADE] if rule.upgrades else found


def _end_to_end(event: h11.Response | h11.InformationalResponse) -> list[tuple[str, str]]:
    return [
        (name.decode(), value.decode("latin-1"))
        for name, value in event.headers
        if name not in _HOP_BY_HOP
    ]


def _upload(event: Any, engine: End, check: ImageCheck | None) -> bool:
    """Pass a part of a request's body to the engine. Return False if nothing is to follow.

    :raises Refused: the engine must not have it
    """
    if isinstance(event, h11.Data):
        if check:
            check.feed(event.data)
    elif isinstance(event, h11.EndOfMessage):
        if check:
            check.finish()
    else:
        raise Gone("the client has closed its connection")
    try:
        engine.send(event)
    except (BrokenPipeError, ConnectionResetError):
        # The engine answers before it has read all, because it refuses the request.
        return False
    return isinstance(event, h11.Data)


def _message(text: str) -> bytes:
    return json.dumps({"message": text}).encode()
