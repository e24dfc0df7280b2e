# SPDX-License-Identifier: Apache-2.0
"""A random walk, which is short by default.

For hours: ``python -m pytest -s --timeout 0 tests/engine/test_soak.py --steps 100000 --seed 2``.
"""

import time

import pytest

from tests.engine.hosts import ComputeHost
from tests.engine.walk import Walk


def test_walk(pytestconfig: pytest.Config, compute_host: ComputeHost) -> None:
    began = time.monotonic()

    def tell(words: str) -> None:
        print(f"{time.monotonic() - began:8.1f} s  {words}", flush=True)

    walk = Walk(pytestconfig.getoption("--seed"), compute_host)
    for _ in range(pytestconfig.getoption("--steps")):
        walk.step(tell)
    walk.end()
