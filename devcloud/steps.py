# SPDX-License-Identifier: Apache-2.0
"""Named, timed steps, and the explanation of a failed step. Standard library only."""

import collections
import concurrent.futures
import contextlib
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

STARTED = time.monotonic()
_PRINTING = threading.Lock()

TELLING_LINE = re.compile(
    r"\b(CRITICAL|ERROR|FATAL|[Ee]rror:|[Ee]rror\b.*:|level=(error|fatal))|^\w+(\.\w+)*(Error|Exception)\b"
)


class StepFailed(Exception):
    """A step failed.

    :ivar text: the failure, in one line.
    :ivar advice: the remedy.
    :ivar log: the file with the details.
    """

    def __init__(self, text: str, advice: str, log: Path | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.advice = advice
        self.log = log


class TimedOut(StepFailed):
    """A condition did not come true within its time."""


def say(text: str) -> None:
    """Print one line with the seconds since the start."""
    with _PRINTING:
        print(f"{time.monotonic() - STARTED:7.1f} s  {text}", flush=True)


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Print the name of a block and its duration."""
    begin = time.monotonic()
    try:
        yield
    except BaseException:
        say(f"{name}: FAILED after {time.monotonic() - begin:.1f} s")
        raise
    say(f"{name} ({time.monotonic() - begin:.1f} s)")


def run_in_parallel(*chains: Callable[[], None]) -> None:
    """Run functions concurrently. The first failure is raised when all functions have ended."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=len(chains)) as pool:
        for future in [pool.submit(chain) for chain in chains]:
            future.result()


def run_command(
    command: Sequence[str | Path],
    *,
    log: Path,
    advice: str,
    timeout: float = 600,
    environment: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> None:
    """Run a command with its output in a file.

    :param log: the file that the command's output replaces.
    :param advice: the remedy for a failure.
    :param timeout: seconds.
    :raises StepFailed: the command failed or exceeded its timeout.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    name = Path(command[0]).name
    with log.open("w") as output:
        try:
            done = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=timeout,
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                text=True,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise StepFailed(f"{name} took more than {timeout:.0f} s", advice, log) from error
        except FileNotFoundError as error:
            raise StepFailed(
                f"{command[0]} does not exist", "python3 -m devcloud install", None
            ) from error
    if done.returncode != 0:
        raise StepFailed(f"{name} exited with {done.returncode}", advice, log)


def wait_until(
    condition: Callable[[], bool],
    *,
    what: str,
    advice: str,
    log: Path | None = None,
    timeout: float = 90,
    interval: float = 0.2,
) -> None:
    """Poll a condition that has no event to wait for.

    :param timeout: seconds until the failure.
    :param interval: seconds between two polls.
    :raises TimedOut: the condition did not come true within the timeout.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimedOut(f"Timed out after {timeout:.0f} s: {what}", advice, log)
        time.sleep(interval)


def telling_lines(log: Path, limit: int = 6) -> list[str]:
    """Return the last lines of a log that look like a cause, or its last lines."""
    if not log.exists():
        return []
    with log.open(errors="replace") as lines:
        recent = collections.deque((line.rstrip() for line in lines if line.strip()), maxlen=400)
    telling = [line for line in recent if TELLING_LINE.search(line)]
    return (telling or list(recent))[-limit:]


def explain(failure: StepFailed) -> str:
    """Return the user's text: the failure, the relevant log lines, the remedy."""
    parts = [f"FAILED: {failure.text}"]
    if failure.log is not None:
        parts += [f"  {line[:300]}" for line in telling_lines(failure.log)]
        parts.append(f"  log: {failure.log}")
    parts.append(f"  what to do: {failure.advice}")
    return "\n".join(parts)
