# SPDX-License-Identifier: Apache-2.0
"""What a volume was made of, when its tenant has changed what Cinder says of that."""

from typing import Any

import pytest
from nova import exception as nova_exception
from nova import objects
from nova.image import glance
from nova.volume import cinder as nova_cinder

from novadocker import exception
from novadocker.virt.docker.volumes import cinder

VOLUME = "7e570000-0000-4000-8000-0000000000b1"
IMAGE = "5eed0000-0000-4000-8000-0000000000c1"
DIGEST, OTHER = "0123456789abcdef" * 2, "f" * 32

Record = dict[str, Any]


def read(monkeypatch: pytest.MonkeyPatch, said: Record, record: Record | Exception) -> Any:
    """Return what the driver reads of a volume, given Cinder's and Glance's records."""

    class Cinder:
        def get(self, _context: Any, _volume_id: str) -> Record:
            return {"volume_image_metadata": said}

    class Glance:
        def get(self, _context: Any, image_id: str) -> Record:
            assert image_id == IMAGE
            if isinstance(record, Exception):
                raise record
            return record

    monkeypatch.setattr(nova_cinder, "API", Cinder)
    monkeypatch.setattr(glance, "API", Glance)
    return cinder.read_image(None, VOLUME, objects.ImageMetaProps())


def described(**changes: object) -> Record:
    return {
        "image_id": IMAGE,
        "image_name": "web",
        "checksum": DIGEST,
        "container_format": "docker",
        "disk_format": "raw",
        "size": "4096",
        **changes,
    }


def test_a_volume_of_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, {}, {}) is None


def test_the_record_of_glance_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant's words must not choose how an image is read that others boot, too."""
    said = described(checksum=OTHER, container_format="bare", disk_format="qcow2", size="x")
    record = described(name="web", size=4096)
    image = read(monkeypatch, said, record)
    assert image.readable
    found = image.meta
    assert (found.id, found.name, found.checksum, found.size) == (IMAGE, "web", DIGEST, 4096)
    assert (found.container_format, found.disk_format) == ("docker", "raw")


@pytest.mark.parametrize(
    "failure",
    [
        nova_exception.ImageNotFound(image_id=IMAGE),
        nova_exception.GlanceConnectionFailed(server="g", reason="away"),
    ],
)
def test_an_image_that_glance_does_not_have(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    image = read(monkeypatch, described(), failure)
    assert not image.readable
    found = image.meta
    assert (found.id, found.name, found.checksum, found.size) == (IMAGE, "web", DIGEST, 4096)
    odd = read(monkeypatch, described(checksum="x" * 32, size="many"), failure).meta
    assert (odd.obj_attr_is_set("checksum"), odd.size) == (False, 0)


@pytest.mark.parametrize("image_id", ["../../x", IMAGE.upper(), f"{IMAGE}\n", "latest"])
def test_what_is_not_an_id_is_refused(monkeypatch: pytest.MonkeyPatch, image_id: str) -> None:
    with pytest.raises(exception.VolumeRefused, match="no valid id"):
        read(monkeypatch, described(image_id=image_id), {})
