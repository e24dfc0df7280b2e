# SPDX-License-Identifier: Apache-2.0
"""``novadocker-log``: what the kernel said of one server."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from novadocker.exporter import rings


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the lines that ``novadocker-exporter`` kept; return 1 if there are none."""
    parser = argparse.ArgumentParser(prog="novadocker-log", description=__doc__)
    parser.add_argument("uuid", help="of the server")
    parser.add_argument(
        "--folder",
        type=Path,
        default=rings.FOLDER,
        help="where novadocker-exporter keeps them (default %(default)s)",
    )
    chosen = parser.parse_args(arguments)
    lines = 0
    try:
        for line in rings.read(chosen.folder, chosen.uuid):
            sys.stdout.write(line)
            lines += 1
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not lines:
        print("The kernel said nothing of it on this host.", file=sys.stderr)
    return 0 if lines else 1
