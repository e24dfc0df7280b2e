# SPDX-License-Identifier: Apache-2.0
"""A real registry with TLS, passwords or tokens, and its own disk."""

import base64
import json
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.engine import daemons, token_server
from tests.engine.token_server import TokenServer
from tests.suspending import suspend

USER, PASSWORD = "mover", "secret"
# A registry requires bcrypt hashes.
_HASH = "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"

_CONFIG = """
version: 0.1
storage:
  filesystem:
    rootdirectory: {folder}/disk
  delete:
    enabled: true
http:
  addr: {address}
  tls:
    certificate: {folder}/ca.crt
    key: {folder}/key
"""
_PASSWORDS = """
auth:
  htpasswd:
    realm: registry
    path: {folder}/htpasswd
"""
_TOKENS = """
auth:
  token:
    realm: {realm}
    service: {service}
    issuer: {issuer}
    rootcertbundle: {folder}/ca.crt
"""


class Registry:
    """A registry with all its files below one directory.

    :ivar address: host and port
    :ivar certificates: a directory in the layout of an engine's ``certs.d``
    :ivar credentials: a file in the format of ``docker login``
    :ivar tokens: the token server; None if the registry asks for name and password itself
    """

    def __init__(self, folder: Path, address: str, enter: Sequence[str | Path]) -> None:
        """Write a registry's files below a directory.

        :param enter: the prefix of the registry's command that enters its network namespace
        """
        self.address = address
        self.folder = folder
        self._enter = enter
        self.disk = folder / "disk"
        self.certificates = folder / "certs.d"
        self.credentials = folder / "config.json"
        (self.certificates / self.address).mkdir(parents=True)
        self.secret = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        self.credentials.write_text(json.dumps({"auths": {self.address: {"auth": self.secret}}}))
        self.tokens: TokenServer | None = None
        (folder / "htpasswd").write_text(f"{USER}:{_HASH}\n")
        self._make_certificate()
        (self.certificates / self.address / "ca.crt").write_bytes((folder / "ca.crt").read_bytes())

    def _make_certificate(self) -> None:
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=registry"),
                *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
                *("-addext", f"subjectAltName=IP:{self.address.partition(':')[0]}"),
                *("-keyout", f"{self.folder}/key", "-out", f"{self.folder}/ca.crt"),
            ],
            check=True,
            capture_output=True,
        )

    def start(self) -> None:
        config = _CONFIG + (_TOKENS if self.tokens else _PASSWORDS)
        values = {
            "folder": self.folder,
            "address": self.address,
            "realm": self.tokens and self.tokens.realm,
            "service": token_server.SERVICE,
            "issuer": token_server.ISSUER,
        }
        (self.folder / "registry.yml").write_text(config.format(**values))
        self._process = daemons.start(
            [*map(str, self._enter), "docker-registry", "serve", f"{self.folder}/registry.yml"],
            self.folder / "log",
            self._listens,
        )

    def stop(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        daemons.stop(self._process)

    def freeze(self) -> None:
        """Suspend the registry, which keeps its connections open."""
        suspend(self._process.pid)

    def fill(self) -> None:
        """Fill its disk."""
        with suppress(OSError), (self.disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(1 << 16)):
                pass

    def change_certificate(self) -> None:
        """Replace the certificate by one that no client trusts."""
        self.stop()
        self._make_certificate()
        self.start()

    def images(self) -> list[str]:
        """Return the registry's manifests, by digest and by tag."""
        return self._links("_manifests")

    def data(self) -> list[str]:
        """Return the registry's blobs, by digest."""
        return self._links("_layers")

    def served(self) -> list[str]:
        """Return the engines' requests for blobs, by repository and digest."""
        lines = (self.folder / "log").read_text().splitlines()
        asked = [line for line in lines if '"GET ' in line and "docker/" in line]
        return [line.split('"GET ')[1].split()[0] for line in asked if "/blobs/" in line]

    def _links(self, kind: str) -> list[str]:
        links = [str(path.parent.relative_to(self.disk)) for path in self.disk.rglob("link")]
        return sorted(link for link in links if f"/{kind}/" in link)

    def _listens(self) -> bool:
        host, _, port = self.address.partition(":")
        with socket.socket() as client:
            return client.connect_ex((host, int(port))) == 0


def free_address() -> str:
    """Return an address of this machine with a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextmanager
def registry(
    folder: Path,
    disk_mib: int,
    address: str = "",
    enter: Sequence[str | Path] = (),
    token_seconds: float = 0,
) -> Iterator[Registry]:
    """Run a registry on its own disk of limited size.

    :param token_seconds: how long it accepts a token; 0 for passwords instead of tokens
    """
    (folder / "disk").mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={disk_mib}m", "tmpfs", str(folder / "disk")],
        check=True,
    )
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", str(folder / "disk")], check=True)
        found = Registry(folder, address or free_address(), enter)
        if token_seconds:
            found.tokens = stack.enter_context(
                token_server.token_server(
                    found.secret, folder / "ca.crt", folder / "key", token_seconds
                )
            )
        found.start()
        stack.callback(found.stop)
        yield found
