# SPDX-License-Identifier: Apache-2.0
"""``novadocker-log``: prints the lines of the kernel's log about one server."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from novadocker.exporter import rings


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the lines that ``novadocker-exporter`` stored. Return 1 if there are none."""
    parser = argparse.ArgumentParser(prog="novadocker-log", description=__doc__)
    parser.add_argument("uuid", help="UUID of the server")
    parser.add_argument(
        "--folder",
        type=Path,
        default=rings.FOLDER,
        help="directory in which novadocker-exporter stores the lines (default %(default)s)",
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
        print(
            f"There are no lines of the kernel's log about server {chosen.uuid} on this host.",
            file=sys.stderr,
        )
    return 0 if lines else 1
