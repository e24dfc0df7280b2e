# SPDX-License-Identifier: Apache-2.0
"""An engine accepts one nova-compute only."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from novadocker import exception
from novadocker.virt.docker.driver import DockerDriver
from novadocker.virt.docker.engine import client as engine_module
from novadocker.virt.docker.engine.claim import EngineClaim
from tests.unit.fakes import FakeEngine

_HOLD = """
import sys
from novadocker.virt.docker.engine.claim import EngineClaim
claim = EngineClaim()
claim.take(sys.argv[1])
print("taken", flush=True)
sys.stdin.read()
"""


def test_a_second_nova_compute_does_not_start(
    driver: DockerDriver, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    info = replace(engine.info_, data_root=str(tmp_path))
    first, second = (engine_module.Engine("unix:///nowhere", 1, 1) for _ in range(2))
    first.claim(info)
    first.claim(info)
    monkeypatch.setattr(engine, "claim", lambda _: second.claim(info))
    monkeypatch.setattr(engine, "release", second.release)
    with pytest.raises(exception.InvalidConfiguration, match="another nova-compute uses"):
        driver.init_host("host2")
    first.release()
    driver.init_host("host2")
    with pytest.raises(exception.InvalidConfiguration):
        first.claim(info)
    driver.cleanup_host("host2")
    first.claim(info)
    first.release()


def test_a_claim_goes_with_its_process(tmp_path: Path) -> None:
    claim: Any = EngineClaim()
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == b"taken\n"
        with pytest.raises(exception.InvalidConfiguration):
            claim.take(str(tmp_path))
        # Another engine has no claim.
        claim.take(f"{tmp_path}/other")
        other.kill()
        other.wait()
        claim.take(str(tmp_path))
    claim.release()
