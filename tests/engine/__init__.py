# SPDX-License-Identifier: Apache-2.0
"""Tests with a real engine."""

import pytest
from nova import objects

# pytest then rewrites these modules' assertions, so that a failure shows the values.
pytest.register_assert_rewrite("tests.engine.survey", "tests.engine.walk")

# The signatures of the modules under test name Nova's objects.
objects.register_all()
