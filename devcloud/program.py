# SPDX-License-Identifier: Apache-2.0
"""A program as supervisor runs it."""

import dataclasses
import hashlib
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Program:
    """One supervised program.

    :ivar name: its name for ``ctl``; its log is ``log/<name>.log``.
    :ivar command: program and arguments, run in the foreground.
    :ivar config: files whose change means it must be restarted.
    :ivar environment: what it needs beyond PATH, HOME and LANG.
    :ivar user: system user, None for root.
    :ivar stop_signal: what ends it cleanly and soon.
    :ivar stop_wait: seconds until it is killed.
    :ivar stage: programs of one stage start together, lower ones first.
    """

    name: str
    command: tuple[str, ...]
    config: tuple[Path, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    user: str | None = None
    stop_signal: str = "TERM"
    # the services keep nothing that a SIGKILL could cost
    stop_wait: int = 4
    stage: str = "service"

    def config_digest(self) -> str:
        """Return a digest of the config files as they are now."""
        digest = hashlib.sha256()
        for path in self.config:
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]
