# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' processes in a compute host's network namespace, with a line protocol."""

import contextlib
import pwd
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

from devcloud.network import inside
from devcloud.settings import CHECKOUT, Host, Settings
from devcloud.steps import StepFailed

_ANSWER_SECONDS = 60
# The process deletes everything that it created before it ends.
_END_SECONDS = 60


class Helper:
    """A process that prints a line when it is ready, and a line for each line that it receives."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._name = name
        self._process = process
        self._log = log

    def send(self, line: str) -> None:
        """Send one line."""
        assert self._process.stdin is not None
        # If the process has ended, read() fails with a better explanation.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n".encode())

    def read(self) -> str:
        """Return the next line.

        :raises StepFailed: no line came within a minute, or the process ended
        """
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _ANSWER_SECONDS)
        line = self._process.stdout.readline().decode() if ready else ""
        if not line:
            raise self._failed("did not answer")
        return line

    def end(self) -> None:
        """Close the process's input, which makes it clean up and end.

        :raises StepFailed: the process failed, or was killed because it did not end within a minute
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired as error:
            self._process.kill()
            raise self._failed("did not end") from error
        if code != 0:
            raise self._failed(f"exited with status {code}")

    def _failed(self, what: str) -> StepFailed:
        return StepFailed(f"{self._name} {what}", f"less {self._log}", self._log)


@contextlib.contextmanager
def started(
    settings: Settings, host: Host, module: str, *arguments: str | Path, user: str = "root"
) -> Iterator[Helper]:
    """Run a module of the benchmarks until the body ends.

    :raises StepFailed: the process does not become ready, or it failed; its log contains the cause
    """
    identity = pwd.getpwnam(user)
    command = [
        *("setpriv", f"--reuid={user}", f"--regid={identity.pw_gid}", "--init-groups"),
        *(settings.bin / "python3", "-m", module, *arguments),
    ]
    path = settings.log / f"{module}.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            inside(host.namespace, command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
            cwd=CHECKOUT,
            env={
                "PATH": f"{settings.bin}:/usr/sbin:/usr/bin:/sbin:/bin",
                "LANG": "C.UTF-8",
                "HOME": str(settings.host_data(host) / "nova"),
            },
            # On an interrupt, only this process handles the signal; the helper ends with its input.
            start_new_session=True,
        )
    helper = Helper(module, process, path)
    with contextlib.ExitStack() as stack:
        stack.callback(helper.end)
        helper.read()
        yield helper
