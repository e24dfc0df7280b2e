# SPDX-License-Identifier: Apache-2.0
"""``novadocker-recover``: reads the data of servers while the engine is down or lost."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from novadocker.recovery import copies, mounts, progress, verify
from novadocker.recovery.dataroot import DataRoot, RecoveryError, Server, volume

OK, FAILED, DAMAGED = 0, 1, 3


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="novadocker-recover",
        description="Reads the servers of a host from the Docker Engine's data root, without the"
        " engine, and without writing to it.",
        epilog=f"Exit status: {OK} success, {FAILED} failure, 2 wrong usage, {DAMAGED} damage was"
        " found.",
    )
    parser.add_argument(
        *("--root", "-r"),
        type=Path,
        default=Path("/var/lib/docker"),
        help="data root, on this host's disk or on an attached one (default: %(default)s)",
    )
    parser.add_argument(
        "--thin-pool",
        type=Path,
        metavar="DEVICE",
        help="active pool of the storage driver devicemapper, if it is on LVM",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="list the servers")
    named = {
        "mount": "mount a server's file system, read-only unless --changes is given",
        "copy": "copy a server's file system into a directory",
        "tar": "write a server's file system as a tar archive",
        "image": "write a server as an image archive for Glance",
        "verify": "read all files of a server and compare them with a copy",
    }
    for name, text in named.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("server", help="instance UUID, instance name or container id")
        command.add_argument(
            "--volume",
            action="append",
            default=[],
            metavar="PATH=NAME",
            help="volume that the server's damaged metadata does not name; list shows such volumes",
        )
        if name == "verify":
            command.add_argument("--against", type=Path, help="directory that copy created")
        else:
            command.add_argument("target", type=Path)
        if name == "mount":
            command.add_argument(
                "--changes", type=Path, help="directory that receives all writes to the mount"
            )
    commands.add_parser("umount", help="unmount a file system of mount").add_argument(
        "target", type=Path
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, print its error and return the exit status."""
    parsed = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        return run(parsed)
    except (RecoveryError, OSError, subprocess.SubprocessError) as error:
        print_error(str(error))
        return FAILED


def run(parsed: argparse.Namespace) -> int:
    """Run one command and return the exit status.

    :raises RecoveryError: the command failed
    """
    if parsed.command == "umount":
        mounts.unmount(parsed.target)
        return OK
    root = DataRoot(parsed.root.absolute(), parsed.thin_pool)
    if parsed.command == "list":
        return show(root, as_json=parsed.json)
    server = with_volumes(root.find(parsed.server), parsed.volume)
    if server.damage:
        print_error(server.damage)
    # A user who names the volumes supplies the lost part of the metadata.
    damaged = bool(server.damage) and not parsed.volume
    if parsed.command == "mount":
        mounts.mount(root, server, parsed.target, parsed.changes)
        return DAMAGED if damaged else OK
    with mounted(root, server) as source:
        changed: list[str] = []
        match parsed.command:
            case "copy":
                changed = copies.copy_folder(source, parsed.target)
            case "tar":
                changed = copies.write_tar(source, parsed.target)
            case "image":
                image = root.image_config(server)
                changed = copies.write_image(
                    source, parsed.target, image, server.config, root.first_ids
                )
            case "verify":
                problems = list(verify.problems(source, parsed.against))
                damaged |= print_problems(problems, as_json=parsed.json) == DAMAGED
    for line in changed:
        print_error(line)
    return DAMAGED if changed or damaged else OK


def print_error(text: str) -> None:
    """Print a line on stderr, with escapes, because tenants choose the names of files."""
    print(f"novadocker-recover: {progress.printable(text)}", file=sys.stderr)


@contextmanager
def mounted(root: DataRoot, server: Server) -> Iterator[Path]:
    """Mount a server read-only in a temporary directory while the body runs."""
    with tempfile.TemporaryDirectory(prefix="novadocker-recover-") as folder:
        target = Path(folder)
        mounts.mount(root, server, target)
        try:
            yield target
        finally:
            mounts.unmount(target)


def with_volumes(server: Server, named: Sequence[str]) -> Server:
    """Return a server with further volumes, each given as ``PATH=NAME``.

    :raises RecoveryError: a name or a path is malformed
    """
    words = (text.rpartition("=") for text in named)
    more = tuple(volume(name, place) for place, _, name in words)
    return replace(server, volumes=server.volumes + more)


def show(root: DataRoot, *, as_json: bool) -> int:
    """Print the servers. Return ``DAMAGED`` if the metadata of a server is damaged."""
    servers = root.servers()
    damaged = any(server.damage for server in servers)
    unclaimed = root.unclaimed_volumes() if damaged else []
    rows = [
        {
            "uuid": server.uuid,
            "name": server.name,
            "project": server.project,
            "flavor": server.flavor,
            "host": server.host,
            "image": server.image,
            "created": server.created,
            "container": server.container,
            "own": server.own,
            "driver": server.driver,
            "volumes": [str(volume.destination) for volume in server.volumes],
            "damage": server.damage,
            "unclaimed_volumes": unclaimed if server.damage else [],
        }
        for server in servers
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        for server in servers:
            name = progress.printable(server.name or "-")
            print(f"{server.uuid or '-':36}  {server.container[:12]}  {name}")
            if not server.own:
                print("    not the server's own container, but a rescue or one with its labels")
            if server.damage:
                print(f"    {progress.printable(server.damage)}")
        if unclaimed:
            print("volumes that no container's metadata names:")
        for name in unclaimed:
            print(f"    {progress.printable(name)}")
    return DAMAGED if damaged else OK


def print_problems(problems: Sequence[str], *, as_json: bool) -> int:
    """Print the problems that verify found. Return ``DAMAGED`` if there are any."""
    if as_json:
        print(json.dumps({"problems": problems}, indent=1))
    else:
        for problem in problems:
            print(progress.printable(problem))
    return DAMAGED if problems else OK
