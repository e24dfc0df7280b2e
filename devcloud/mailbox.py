# SPDX-License-Identifier: Apache-2.0
"""A mail server that stores mails as files and forwards none. Standard library only."""

import socketserver
import sys
import time
from pathlib import Path

_LARGEST = 1 << 20
_CLIENT_SECONDS = 30


class Mailbox(socketserver.ThreadingTCPServer):
    """An SMTP server on the loopback address.

    :param folder: the directory of the mails.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int, folder: Path) -> None:
        self.folder = folder
        super().__init__(("127.0.0.1", port), _Client)


class _Client(socketserver.StreamRequestHandler):
    """One SMTP session (RFC 5321), as far as a well-behaved client needs it."""

    timeout = _CLIENT_SECONDS
    server: Mailbox

    def handle(self) -> None:
        """Receive mails until the client disconnects."""
        recipients: list[str] = []
        self._say("220 devcloud")
        while line := self.rfile.readline(4096).decode("ascii", "replace").strip():
            verb = line.split(maxsplit=1)[0].upper()
            if verb == "QUIT":
                self._say("221 bye")
                return
            if verb == "DATA":
                self._say("354 go on")
                self._keep(recipients)
                recipients = []
            elif verb == "RCPT":
                recipients.append(line.partition(":")[2])
            self._say("250 ok")

    def _keep(self, recipients: list[str]) -> None:
        lines = [f"X-Envelope-To: {', '.join(recipients)}\r\n".encode()]
        size = 0
        while (line := self.rfile.readline(_LARGEST)) not in (b".\r\n", b""):
            size += len(line)
            if size < _LARGEST:
                lines.append(line.removeprefix(b"."))
        path = self.server.folder / f"{time.time_ns()}.eml"
        path.with_suffix(".part").write_bytes(b"".join(lines))
        path.with_suffix(".part").rename(path)

    def _say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


def main(port: str, folder: str) -> None:
    """Receive mails until a signal ends the process."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with Mailbox(int(port), Path(folder)) as server:
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
