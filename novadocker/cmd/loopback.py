# SPDX-License-Identifier: Apache-2.0
"""Common parts of programs that serve the loopback address and require a password."""

import argparse
import ipaddress
from pathlib import Path

from novadocker.exporter import serving

ADDRESS = ipaddress.ip_address("127.0.0.1")


def make_parser(
    program: str, description: str | None, client: str, port: int
) -> argparse.ArgumentParser:
    """Return a parser with ``--password-file`` and ``--port``.

    :param client: the program that sends the password
    :param port: default of ``--port``
    """
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument(
        "--password-file",
        type=Path,
        required=True,
        help=f"file with the line user:password that {client} sends; its permissions must not give "
        "access to other users",
    )
    parser.add_argument("--port", type=int, default=port, help="TCP port (default %(default)s)")
    return parser


def read_password(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> bytes:
    """Return the user and password in the file; exit with a usage error if it can't be read."""
    try:
        return serving.read_password(chosen.password_file)
    except (OSError, ValueError) as error:
        parser.error(str(error))
