# SPDX-License-Identifier: Apache-2.0
"""Entry point of ``python3 -m devcloud``."""

import sys

from devcloud.cli import main

sys.exit(main(sys.argv[1:]))
