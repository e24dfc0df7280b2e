# SPDX-License-Identifier: Apache-2.0
"""What programs have in common that serve the loopback address and ask for a password."""

import argparse
import ipaddress
from pathlib import Path

from novadocker.exporter import serving

ADDRESS = ipaddress.ip_address("127.0.0.1")


def make_parser(
    program: str, description: str | None, client: str, port: int
) -> argparse.ArgumentParser:
    """Return a parser with ``--password-file`` and ``--port``.

    :param client: who sends the password
    :param port: the default
    """
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument(
        "--password-file",
        type=Path,
        required=True,
        help=f"file with a line user:password, closed to others, that {client} sends",
    )
    parser.add_argument("--port", type=int, default=port, help="TCP port (default %(default)s)")
    return parser


def read_password(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> bytes:
    """Return the user and password of the file that was chosen; end the program without one."""
    try:
        return serving.read_password(chosen.password_file)
    except (OSError, ValueError) as error:
        parser.error(str(error))
