# SPDX-License-Identifier: Apache-2.0
"""The command line. It starts on the system's Python and re-executes itself on the venv's."""

import argparse
import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator, Sequence

from devcloud import install
from devcloud.settings import CHECKOUT, Settings, SettingsError, load_settings
from devcloud.steps import StepFailed, explain, say

COMMANDS = {
    "install": "install Debian packages and the virtual environment",
    "environment": "install the virtual environment only; needs no root",
    "up": "start the cloud; returns soon if it is up",
    "down": "stop everything, keep the cloud's data",
    "clean": "stop everything and delete the cloud's data",
    "status": "list the programs and their states",
    "ctl": "supervisorctl: status, restart NAME, stop NAME, tail -f NAME, ...",
    "images": "build the missing images",
    "demo": "start the cloud, boot a server and show it",
    "tempest": "run the Tempest tests whose names match; all suites without a pattern",
    "browser": "install the browser for the dashboard's tests",
    "fake-host": "start or stop a compute host with Nova's fake driver, for benchmarks",
}

CHANGING = ("up", "down", "clean", "demo", "tempest", "fake-host")
"""Commands that must not run concurrently."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m devcloud",
        description="A complete OpenStack cloud on one machine. Its state is in DEVCLOUD_DIR"
        " (default: .devcloud in the checkout).",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=text)
        if name == "ctl":
            subparser.add_argument("words", nargs=argparse.REMAINDER)
        if name == "tempest":
            subparser.add_argument("patterns", nargs="*", help="regular expressions")
        if name == "fake-host":
            subparser.add_argument("direction", choices=("up", "down"))
        if name == "clean":
            subparser.add_argument(
                "--all",
                action="store_true",
                help="also delete the virtual environment and the images",
            )
    return parser.parse_args(arguments)


@contextlib.contextmanager
def lock(settings: Settings, *, wait: bool) -> Iterator[None]:
    """Hold the cloud's lock, so that only one command at a time changes the cloud.

    :param wait: False for commands that change nothing; they do not need the lock.
    """
    if not wait:
        yield
        return
    settings.folder.mkdir(parents=True, exist_ok=True)
    with (settings.folder / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def run_inside(settings: Settings, parsed: argparse.Namespace) -> int:
    """Run a command that needs the virtual environment's packages."""
    from devcloud import dashboard, demo, down, fake, images, supervise, up

    match parsed.command:
        case "up":
            up.up(settings)
        case "down":
            down.down(settings)
        case "clean":
            down.clean(settings, everything=parsed.all)
        case "status":
            return supervise.control(settings, ["status"])
        case "ctl":
            return supervise.control(settings, parsed.words)
        case "images":
            images.build_all(settings)
        case "demo":
            demo.demo(settings)
        case "browser":
            dashboard.install_browser(settings)
        case "tempest":
            from devcloud.tempest.run import run

            up.up(settings)
            return min(run(settings, parsed.patterns), 1)
        case "fake-host":
            fake.start(settings) if parsed.direction == "up" else fake.stop(settings)
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the exit status."""
    parsed = parse(arguments)
    try:
        settings = load_settings()
    except SettingsError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 2
    try:
        if parsed.command in ("install", "up", "demo", "tempest"):
            install.install(settings)
        if parsed.command == "environment":
            install.install_environment(settings)
            return 0
        if parsed.command == "install":
            say("installed")
            return 0
        if os.path.realpath(sys.prefix) != os.path.realpath(settings.venv):
            python = settings.bin / "python3"
            if not python.exists():
                raise StepFailed(f"{python} does not exist", "python3 -m devcloud install")
            # The child imports this package by path, because the caller's directory may be any.
            environment = dict(
                os.environ, PYTHONPATH=str(CHECKOUT), DEVCLOUD_DIR=str(settings.folder)
            )
            os.execve(python, [str(python), "-m", "devcloud", *arguments], environment)
        with lock(settings, wait=parsed.command in CHANGING):
            return run_inside(settings, parsed)
    except StepFailed as failure:
        print(explain(failure), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "interrupted; python3 -m devcloud up continues, down stops the cloud", file=sys.stderr
        )
        return 130
