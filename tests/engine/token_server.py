# SPDX-License-Identifier: Apache-2.0
"""A token server for a registry, as Harbor, GitLab and Quay have one."""

import base64
import json
import secrets
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt

from tests import https

SERVICE, ISSUER = "novadocker-registry", "novadocker-tokens"

# A docker-registry accepts a token for this long after its end (Leeway in registry/auth/token).
_LEEWAY_SECONDS = 60


class TokenServer:
    """Tokens for everybody who gives the name and the password.

    :ivar lifetime: seconds for which a registry accepts a token
    :ivar granted: the scope of each token
    """

    def __init__(self, known: str, certificate: Path, key: Path, lifetime: float) -> None:
        self._known = f"Basic {known}"
        self._key = key.read_text()
        pem = ssl.PEM_cert_to_DER_cert(certificate.read_text())
        self._chain = [base64.b64encode(pem).decode()]
        self.lifetime = lifetime
        self.granted: list[str] = []
        self.realm = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        query = parse_qs(urlsplit(request.path).query)
        if request.headers["Authorization"] != self._known:
            _reply(request, 401, {"errors": [{"message": "wrong name or password"}]})
            return
        scopes = query.get("scope", [])
        self.granted.extend(scopes)
        _reply(request, 200, {"token": self._token(query["service"][0], scopes)})

    def _token(self, service: str, scopes: list[str]) -> str:
        now = int(time.time())
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        claims = {
            "iss": ISSUER,
            "aud": service,
            "sub": "mover",
            "jti": secrets.token_hex(8),
            "iat": now - 2 * _LEEWAY_SECONDS,
            "nbf": now - 2 * _LEEWAY_SECONDS,
            "exp": int(now + self.lifetime - _LEEWAY_SECONDS),
            "access": access,
        }
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"x5c": self._chain})


def _reply(request: BaseHTTPRequestHandler, status: int, fields: object) -> None:
    body = json.dumps(fields).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


@contextmanager
def token_server(
    known: str, certificate: Path, key: Path, lifetime: float
) -> Iterator[TokenServer]:
    """Serve tokens over TLS on an address of this machine.

    :param known: name and password in base64 of who gets tokens
    :param certificate: of the server and of the tokens
    """
    found = TokenServer(known, certificate, key, lifetime)

    with https.served(found.answer, certificate, key) as port:
        found.realm = f"https://127.0.0.1:{port}/token"
        yield found
