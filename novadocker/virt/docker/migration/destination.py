# SPDX-License-Identifier: Apache-2.0
"""The source's end of a move: the command that connects it with the destination host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from oslo_log import log as logging

from novadocker import exception
from novadocker.linux import pipes
from novadocker.virt.docker.migration import protocol
from novadocker.virt.docker.migration.protocol import M

LOG = logging.getLogger(__name__)

_ERROR_BYTES = 2000
_ERROR_SECONDS = 5.0
_END_SECONDS = 120.0


class Destination:
    """Sends messages to the destination host and reads its answers."""

    def __init__(self, process: subprocess.Popen[bytes], instance_uuid: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._instance_uuid = instance_uuid
        self._input = process.stdin.fileno()
        self._output = process.stdout.fileno()
        # A privileged process that opens the pipe by its path in /proc has a mode of its own.
        os.set_blocking(self._input, False)

    def fileno(self) -> int:
        """Return the file descriptor of the pipe that the destination reads."""
        return self._input

    def ask(self, order: protocol.Order) -> None:
        """Send an order and wait for its answer. Raises as ``expect``."""
        self.send(order)
        self.expect_answer(order)

    def expect_answer(self, order: protocol.Order) -> None:
        """Wait for the answer to an order that was sent. Raises as ``expect``."""
        self.expect(order.ANSWER, order.SECONDS)

    def send(self, message: protocol.Message) -> None:
        """Send a message.

        :raises ResizeRefused: the destination does not read it, or refused the instance before
        """
        self.write(protocol.encode(message))

    def write(self, data: bytes) -> None:
        """Send bytes. Raises as ``send``."""
        try:
            pipes.write_within(self._input, data, protocol.STALL_SECONDS)
        except OSError as error:
            raise self.failure(error) from error

    def expect(self, kind: type[M], seconds: float) -> M:
        """Return the next message of the destination.

        :raises ResizeRefused: it is not of that kind, or does not arrive within ``seconds``
        """
        try:
            answer = protocol.decode(self._line(seconds), kind, protocol.Refused)
        except protocol.ProtocolError as error:
            raise self._failure(f"it does not answer ({error})") from error
        if isinstance(answer, kind):
            return answer
        raise _refusal(answer)

    def failure(self, cause: object) -> exception.ResizeRefused:
        """Kill the command after a failed write; return the fault, with the reason for it."""
        try:
            # The destination may have refused before it stopped to read, so its answer is read.
            return _refusal(protocol.decode(self._line(_ERROR_SECONDS), protocol.Refused))
        except protocol.ProtocolError:
            return self._failure(cause)
        finally:
            self._process.kill()

    def _failure(self, cause: object) -> exception.ResizeRefused:
        """Kill the command; return the fault, with the last line of the command's errors."""
        self._process.kill()
        errors = self._errors()
        LOG.error(
            "The command that sends an instance's data failed: %s",
            errors or cause,
            instance_uuid=self._instance_uuid,
        )
        last = errors.splitlines()[-1] if errors else str(cause)
        return exception.ResizeRefused(
            reason=f"The server's data could not be sent to the destination host: {last}"
        )

    def _line(self, seconds: float) -> bytes:
        return protocol.read_line(self._output, seconds)

    def _errors(self) -> str:
        """Return the end of what the command wrote to its standard error."""
        assert self._process.stderr is not None
        errors = b""
        # A child of the command may keep the pipe open, so the read has a bound.
        with suppress(TimeoutError):
            pipes.await_data(self._process.stderr.fileno(), _ERROR_SECONDS)
            errors = self._process.stderr.read(_ERROR_BYTES)
        return errors.decode(errors="replace").strip()


def _refusal(refused: protocol.Message) -> exception.ResizeRefused:
    assert isinstance(refused, protocol.Refused)
    return exception.ResizeRefused(
        reason=f"The destination host refuses the server: {refused.reason}"
    )


@contextmanager
def connect(command: Sequence[str], host: str, instance_uuid: str) -> Iterator[Destination]:
    """Run the command that speaks for a host as long as the block runs.

    :param command: with ``{host}`` for the address
    :param instance_uuid: the instance that moves, for the log
    :raises ResizeRefused: the command cannot be run
    """
    try:
        process = subprocess.Popen(
            [word.format(host=host) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
    except OSError as error:
        raise exception.ResizeRefused(reason=f"{command[0]} can't be run: {error}") from error
    try:
        yield Destination(process, instance_uuid)
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        # The destination ends at the end of its input.
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
