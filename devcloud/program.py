# SPDX-License-Identifier: Apache-2.0
"""The description of a program for supervisor."""

import dataclasses
import hashlib
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Program:
    """One supervised program.

    :ivar name: its name for ``ctl``; its log is ``log/<name>.log``.
    :ivar command: program and arguments; it runs in the foreground.
    :ivar config: configuration files; a change of them requires a restart.
    :ivar environment: environment variables beyond PATH, HOME and LANG.
    :ivar user: system user; None means root.
    :ivar stop_signal: the signal for a clean and quick stop.
    :ivar stop_wait: seconds between the stop signal and SIGKILL.
    :ivar stage: programs of one stage start together.
    """

    name: str
    command: tuple[str, ...]
    config: tuple[Path, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    user: str | None = None
    stop_signal: str = "TERM"
    # The services hold no state that a SIGKILL could lose, so four seconds suffice.
    stop_wait: int = 4
    stage: str = "service"

    def config_digest(self) -> str:
        """Return a digest of the configuration files' present content."""
        digest = hashlib.sha256()
        for path in self.config:
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]
