# SPDX-License-Identifier: Apache-2.0
"""Tests with a real engine."""

import pytest
from nova import objects

# what they find wrong is told as tests tell it
pytest.register_assert_rewrite("tests.engine.survey", "tests.engine.walk")

# the modules under test name Nova's objects in signatures
objects.register_all()
