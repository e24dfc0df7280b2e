# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest

from novadocker import exception
from novadocker.virt.docker import plugging
from tests.unit.conftest import network_info
from tests.unit.fakes import FakeVirtAPI

PORT = "0e6e0b4b-7a41-4f0b-9f1a-0f64e1f5a1c1"


def wait(virtapi: FakeVirtAPI, instance: Any, active: bool = False) -> list[str]:
    done = []
    with plugging.wait_for_plugged(virtapi, instance, network_info(active)):
        done.append("plugged")
    return done


@pytest.mark.parametrize(
    ("active", "timeout", "events"),
    [(False, 300, [("network-vif-plugged", PORT)]), (True, 300, []), (False, 0, [])],
)
def test_awaited_events(
    instance: Any, options: Any, active: bool, timeout: int, events: list[tuple[str, str]]
) -> None:
    options(vif_plugging_timeout=timeout)
    virtapi = FakeVirtAPI()
    assert wait(virtapi, instance, active) == ["plugged"]
    assert virtapi.awaited == events


@pytest.mark.parametrize(
    ("outcome", "text"), [("late", f"{PORT} as wired within 300 s"), ("failed", "a failure")]
)
def test_a_missing_event(instance: Any, options: Any, outcome: str, text: str) -> None:
    options(vif_plugging_is_fatal=True)
    with pytest.raises(exception.StartFailed, match=text):
        wait(FakeVirtAPI(outcome), instance)
    options(vif_plugging_is_fatal=False)
    assert wait(FakeVirtAPI(outcome), instance) == ["plugged"]
