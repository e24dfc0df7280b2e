# SPDX-License-Identifier: Apache-2.0
"""The operator's command that verifies an image of a registry before the engine pulls it."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence

from oslo_log import log as logging

from novadocker import exception
from novadocker.linux import pipes

LOG = logging.getLogger(__name__)

_SECONDS = 60
_CHUNK_BYTES = 65536
# The end of the command's messages that the log gets. A registry may choose their length.
_LOGGED_BYTES = 2000


def verify(command: Sequence[str], name: str, seconds: float = _SECONDS) -> None:
    """Run the command for an image; no shell reads its words.

    :param name: the image as ``registry/path@sha256:...``, the last argument of the command
    :param seconds: after which the command and its children are killed
    :raises ImageNotVerified: the command exits with another status than 0
    :raises VerificationFailed: this host cannot run the command, or it takes too long
    """
    end = time.monotonic() + seconds
    try:
        process = subprocess.Popen(
            [*command, name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
    except OSError as error:
        LOG.error("Failed to run [docker] registry_verify_command for image %s: %s", name, error)
        raise exception.VerificationFailed(
            name=name, reason="this host cannot run the cloud's verification of images"
        ) from error
    with process:
        assert process.stderr
        try:
            messages = _last_of(process.stderr.fileno(), end)
            status = process.wait(max(end - time.monotonic(), 0))
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            os.killpg(process.pid, signal.SIGKILL)
            LOG.warning("%s took longer than %d s for image %s", command[0], seconds, name)
            raise exception.VerificationFailed(
                name=name, reason="the cloud's verification of the image takes too long"
            ) from error
    if status:
        LOG.warning(
            "%s refuses image %s with exit status %d: %r", command[0], name, status, messages
        )
        raise exception.ImageNotVerified(
            name=name, reason="the cloud's verification refuses the image"
        )


def _last_of(descriptor: int, end: float) -> bytes:
    """Read a pipe to its end; return the last bytes.

    :raises TimeoutError: the pipe is open at the time ``end``
    """
    last = b""
    while True:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        pipes.await_data(descriptor, left)
        chunk = os.read(descriptor, _CHUNK_BYTES)
        if not chunk:
            return last
        last = (last + chunk)[-_LOGGED_BYTES:]
