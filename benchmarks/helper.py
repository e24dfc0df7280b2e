# SPDX-License-Identifier: Apache-2.0
"""Processes of the benchmarks in a compute host's network namespace, talked to in lines."""

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
# it removes what it made
_END_SECONDS = 60


class Helper:
    """A process that prints a line when it is ready, and one for each that it is sent."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._name = name
        self._process = process
        self._log = log

    def send(self, line: str) -> None:
        """Send one line."""
        assert self._process.stdin is not None
        # the answer that does not come tells more
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n".encode())

    def read(self) -> str:
        """Return the next line.

        :raises StepFailed: none came in a minute, or the process ended
        """
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _ANSWER_SECONDS)
        line = self._process.stdout.readline().decode() if ready else ""
        if not line:
            raise self._failed("does not answer")
        return line

    def end(self) -> None:
        """Close the process's input, on which it cleans up and ends.

        :raises StepFailed: it failed, or did not end in a minute and was killed
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired as error:
            self._process.kill()
            raise self._failed("does not end") from error
        if code != 0:
            raise self._failed(f"exited with {code}")

    def _failed(self, what: str) -> StepFailed:
        return StepFailed(f"{self._name} {what}", f"less {self._log}", self._log)


@contextlib.contextmanager
def started(
    settings: Settings, host: Host, module: str, *arguments: str | Path, user: str = "root"
) -> Iterator[Helper]:
    """Run a module of the benchmarks until the body ends.

    :raises StepFailed: it does not become ready, or it failed; its log says why
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
            # an interrupt is ours to handle: the helper ends with its input
            start_new_session=True,
        )
    helper = Helper(module, process, path)
    with contextlib.ExitStack() as stack:
        stack.callback(helper.end)
        helper.read()
        yield helper
