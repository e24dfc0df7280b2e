# SPDX-License-Identifier: Apache-2.0
"""The images that leave the image cache, and when."""

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from oslo_utils import timeutils

from novadocker import exception
from novadocker.virt.docker.images.cache import ImageCache
from novadocker.virt.docker.model import EngineImage

USED, FRESH, OLD, BUSY = (f"novadocker/{name}:0123456789ab" for name in "ufob")


@dataclass
class FakeEngine:
    """A fake engine with images by name, each with its age in seconds."""

    ages: dict[str, int]
    busy: frozenset[str] = frozenset()
    named: list[str] = field(default_factory=list)

    def list_images(self, pattern: str) -> dict[str, int]:
        assert pattern == "novadocker/*"
        return dict.fromkeys(self.ages, 3 << 20)

    def inspect_image(self, name: str) -> EngineImage:
        if name not in self.ages:
            raise exception.EngineImageNotFound(operation="a look", reason=name)
        age = datetime.timedelta(seconds=self.ages[name])
        return EngineImage(id=name, named_at=timeutils.utcnow() - age)

    def tag_image(self, name: str, repository: str, tag: str) -> None:
        assert name == f"{repository}:{tag}"
        self.named.append(name)

    def remove_image(self, name: str) -> None:
        if name in self.busy:
            raise exception.EngineError(operation="the removal", reason="in use")
        del self.ages[name]


@pytest.fixture
def engine(options: Any, tmp_path: Path) -> FakeEngine:
    options(instances_path=str(tmp_path))
    options(group="image_cache", remove_unused_original_minimum_age_seconds=100)
    return FakeEngine({USED: 500, FRESH: 50, OLD: 101, BUSY: 500}, frozenset([BUSY]))


def update(engine: FakeEngine) -> set[str]:
    ImageCache(engine).update(None, [SimpleNamespace(image_ref="u")])  # type: ignore[arg-type]
    return set(engine.ages)


def test_what_nobody_uses_goes_when_it_is_old(engine: FakeEngine) -> None:
    assert update(engine) == {USED, FRESH, BUSY}
    # Otherwise the image would be deleted together with its last server.
    assert engine.named == [USED]
    assert ImageCache(engine).get_disk_usage() == 9 << 20  # type: ignore[arg-type]


def test_the_operator_can_keep_all(engine: FakeEngine, options: Any) -> None:
    options(group="image_cache", remove_unused_base_images=False)
    assert update(engine) == {USED, FRESH, OLD, BUSY}


def test_an_image_that_goes_meanwhile(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "list_images", lambda _: {"novadocker/x:0": 1, OLD: 1})
    assert update(engine) == {USED, FRESH, BUSY}


def test_what_a_load_left_that_was_cut_off(engine: FakeEngine) -> None:
    engine.ages["novadocker/u:arriving"] = 0
    assert update(engine) == {USED, FRESH, BUSY}
