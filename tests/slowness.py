# SPDX-License-Identifier: Apache-2.0
"""How slow the machine of the tests is, for bounds that a test sets to the product or itself."""

import os

FACTOR = int(os.environ.get("NOVADOCKER_TEST_SLOWNESS", "1"))
"""The factor of short bounds of time; the emulated guest sets it."""
