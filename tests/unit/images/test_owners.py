# SPDX-License-Identifier: Apache-2.0
"""Owners of files that a server's own user namespace has no id for."""

from collections.abc import Sequence

import pytest

from novadocker import exception
from novadocker.virt.docker.images.owners import Owners
from novadocker.virt.docker.model import EngineImage

IMAGE_ID = "5eed0000-0000-4000-8000-000000000001"
LAYERS = ("/d/overlay2/upper/diff", "/d/overlay2/lower/diff")


def test_an_image_is_read_once_if_all_owners_have_ids() -> None:
    asked: list[tuple[Sequence[str], int]] = []
    answers = iter((None, ("home/" + "n" * 90, 65536), None))

    def find(layers: Sequence[str], most: int) -> tuple[str, int] | None:
        asked.append((layers, most))
        return next(answers)

    owners = Owners(find)
    for _ in range(2):
        owners.check(IMAGE_ID, EngineImage("sha256:1", layers=LAYERS))
    assert asked == [(LAYERS, 65535)]
    with pytest.raises(exception.InvalidImage) as caught:
        owners.check(IMAGE_ID, EngineImage("sha256:2", layers=LAYERS))
    text = caught.value.format_message()
    assert f" /home/{'n' * 55} belongs to user or group 65536" in text
    assert "docker:userns=host" in text
    # Nova cuts a fault to 255 characters.
    assert len(text) <= 255
    owners.check(IMAGE_ID, EngineImage("sha256:2", layers=LAYERS))
