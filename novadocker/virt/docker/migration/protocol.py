# SPDX-License-Identifier: Apache-2.0
"""Lines of JSON to and from a command that speaks for another host, and bytes between them."""

from __future__ import annotations

import json
import select
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from oslo_log import log as logging

from novadocker import exception

LOG = logging.getLogger(__name__)

# the other host may have to start its privileged helper
ANSWER_SECONDS = 120.0
# to write gigabytes to a slow disk
APPLY_SECONDS = 1800.0
_LAST_WORDS = 2000
_LAST_WORD_SECONDS = 5.0


class Conversation:
    """Speaks with the other host."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        self._process = process
        self._input = process.stdin

    def fileno(self) -> int:
        """Return the descriptor of the pipe that the other host reads."""
        return self._input.fileno()

    def tell(self, fields: Mapping[str, Any]) -> None:
        """Send a line.

        :raises ResizeRefused: it can't be sent
        """
        self.write(json.dumps(fields).encode() + b"\n")

    def write(self, data: bytes) -> None:
        """Send bytes. Raises as ``tell``."""
        view = memoryview(data)
        try:
            while view:
                view = view[self._input.write(view) or 0 :]
        except OSError as error:
            raise self.refusal(error) from error

    def expect(self, word: str, seconds: float = APPLY_SECONDS) -> dict[str, Any]:
        """Wait for a line that has a word, and return it.

        :raises ResizeRefused: another one comes, or none
        """
        try:
            answer = json.loads(self._line(seconds))
        except ValueError:
            raise self.refusal("it does not answer") from None
        if word not in answer:
            raise _refusal(answer.get("refused"))
        return dict(answer)

    def _line(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        # select() takes no descriptor from 1024 on
        answers = select.poll()
        answers.register(self._process.stdout, select.POLLIN)
        return self._process.stdout.readline() if answers.poll(seconds * 1000) else b""

    def _refused(self) -> object:
        """Return what the other host said before it took no more."""
        try:
            return json.loads(self._line(_LAST_WORD_SECONDS)).get("refused")
        except (ValueError, AttributeError):
            return None

    def refusal(self, what: object) -> exception.ResizeRefused:
        """End it; return the error, with what the other host or the command says of its end."""
        refused = self._refused()
        self._process.kill()
        if refused:
            return _refusal(refused)
        assert self._process.stderr is not None
        words = self._process.stderr.read(_LAST_WORDS).decode(errors="replace").strip()
        LOG.error("The command that sends a server's data ended: %s", words or what)
        last = words.splitlines()[-1] if words else str(what)
        return exception.ResizeRefused(
            reason=f"The server's data could not be sent to the destination host: {last}"
        )


def _refusal(what: object) -> exception.ResizeRefused:
    return exception.ResizeRefused(reason=f"The destination host refuses the server: {what}")


@contextmanager
def conversation(command: Sequence[str], host: str) -> Iterator[Conversation]:
    """Speak with a host as long as the block runs.

    :param command: with ``{host}`` for the address
    :raises ResizeRefused: the command can't be run
    """
    try:
        process = subprocess.Popen(
            [word.format(host=host) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # an answer is not to be read ahead of
            bufsize=0,
        )
    except OSError as error:
        raise exception.ResizeRefused(reason=f"{command[0]} can't be run: {error}") from error
    try:
        yield Conversation(process)
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        # on the end of its input the other side ends
        try:
            process.wait(ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
