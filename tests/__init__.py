# SPDX-License-Identifier: Apache-2.0
"""Tests. This module selects Nova's threading mode before any import of eventlet."""

import os

os.environ["OS_NOVA_DISABLE_EVENTLET_PATCHING"] = "true"

from nova import monkey_patch

# Nova 31 reads the variable while the module is imported, so it has no patch().
if hasattr(monkey_patch, "patch"):
    monkey_patch.patch()

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
"""The root of the checkout that the tests belong to."""
