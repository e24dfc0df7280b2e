# SPDX-License-Identifier: Apache-2.0
"""Run tests in the guest during development: bookworm|trixie, then pytest's arguments."""

import sys

from tests.guest import session

SECONDS = 1800

with session.folder() as held:
    print(f"the guest's console is {held}/run/console", flush=True)
    session.run(held, sys.argv[1], {"tests": sys.argv[2:]}, SECONDS)
    print((held / "run" / "console").read_text(errors="replace"))
