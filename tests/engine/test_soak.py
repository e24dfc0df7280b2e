# SPDX-License-Identifier: Apache-2.0
"""A random walk, short unless told otherwise.

For hours: ``python -m pytest -s --timeout 0 tests/engine/test_soak.py --steps 100000 --seed 2``.
"""

import time
from collections.abc import Callable
from pathlib import Path

import docker
import pytest

from tests.engine import servers, survey, walk
from tests.engine.conftest import busybox_archive
from tests.engine.engines import OwnEngine
from tests.engine.switch import Switch
from tests.fake_glance import FakeGlance


def test_walk(
    pytestconfig: pytest.Config,
    session_engine: OwnEngine,
    ovs: Switch,
    docker_client: docker.APIClient,
    fake_glance: FakeGlance,
    state_folder: Path,
    tmp_path: Path,
    new_instance_uuid: Callable[[], str],
) -> None:
    survey.prepare_image(docker_client, busybox_archive())
    instances = tmp_path / "instances"
    instances.mkdir()
    began = time.monotonic()

    def tell(words: str) -> None:
        print(f"{time.monotonic() - began:8.1f} s  {words}", flush=True)

    with servers.configured(session_engine.url, instances):
        found = walk.Walk(
            pytestconfig.getoption("--seed"),
            lambda: servers.Nova(fake_glance),
            session_engine,
            ovs,
            docker_client,
            survey.Survey(docker_client, ovs, state_folder, instances),
            new_instance_uuid,
        )
        for _ in range(pytestconfig.getoption("--steps")):
            found.step(tell)
        found.end()
    docker_client.remove_image(servers.IMAGE_NAME, force=True)
