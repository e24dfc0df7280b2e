# SPDX-License-Identifier: Apache-2.0
"""Tests. Nova chooses its concurrency mode here, before anything can import eventlet."""

import os

os.environ["OS_NOVA_DISABLE_EVENTLET_PATCHING"] = "true"

from nova import monkey_patch

# Nova 31 decides by the variable while the module is imported
if hasattr(monkey_patch, "patch"):
    monkey_patch.patch()

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
"""The root of the checkout that the tests belong to."""
