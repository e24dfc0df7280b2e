# SPDX-License-Identifier: Apache-2.0
"""The Glance images of snapshots during which nova-compute died, on a fake of Nova's image API."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from glanceclient import exc as glance_errors
from keystoneauth1 import exceptions as keystone_exceptions
from nova import exception as nova_exception
from nova.image import glance as nova_glance
from oslo_utils import timeutils

from novadocker import exception
from novadocker.virt.docker.images import cut_off

CREDENTIALS = object()


class Glance:
    """Images by id, listed with the filters of Glance."""

    def __init__(self, *images: dict[str, Any]) -> None:
        self.images = {image["id"]: image for image in images}
        self.failure: Exception | None = None

    def get_all(self, context: Any, filters: dict[str, str]) -> list[dict[str, Any]]:
        assert context.is_admin
        assert context.get_auth_plugin() is CREDENTIALS
        if self.failure:
            raise self.failure
        return [i for i in self.images.values() if filters.items() <= i.items()]

    def delete(self, context: Any, image_id: str) -> None:
        assert context.get_auth_plugin() is CREDENTIALS
        if image_id not in self.images:
            raise nova_exception.ImageNotFound(image_id=image_id)
        del self.images[image_id]


def image(name: str, instance: Any, **changes: Any) -> dict[str, Any]:
    return {
        "id": name,
        "status": "queued",
        "owner": instance.project_id,
        "instance_uuid": instance.uuid,
        "created_at": timeutils.utcnow(with_timezone=True) - datetime.timedelta(seconds=60),
        **changes,
    }


Images = Callable[[Glance], cut_off.CutOffImages]


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """Return a function that returns the images as a nova-compute that starts has them."""
    return lambda glance: cut_off.CutOffImages(
        glance, lambda: CREDENTIALS, tmp_path / "cut-off-images"
    )


def test_unfinished_images_of_the_server_are_deleted(images: Images, instance: Any) -> None:
    glance = Glance(
        image("queued", instance),
        image("saving", instance, status="saving"),
        image("whole", instance, status="active"),
        image("another server's", instance, instance_uuid="another"),
        image("another tenant's", instance, owner="another"),
    )
    found = images(glance)
    found.sweep()
    assert len(glance.images) == 5
    found.add(instance)
    found.sweep()
    assert set(glance.images) == {"whole", "another server's", "another tenant's"}


@pytest.mark.parametrize("status", ["queued", "saving"])
def test_the_image_of_a_new_snapshot_stays(images: Images, instance: Any, status: str) -> None:
    """The tenant may begin another snapshot before the sweep."""
    glance = Glance(image("old", instance))
    found = images(glance)
    found.add(instance)
    now = timeutils.utcnow(with_timezone=True)
    glance.images["new"] = image("new", instance, status=status, created_at=now)
    found.sweep()
    assert set(glance.images) == {"new"}


@pytest.mark.parametrize(
    "failure",
    [
        nova_exception.GlanceConnectionFailed(server="glance", reason="refused"),
        keystone_exceptions.ConnectFailure("refused"),
        keystone_exceptions.ServiceUnavailable("refused"),
    ],
)
def test_images_are_deleted_when_glance_answers(
    images: Images, instance: Any, failure: Exception
) -> None:
    glance = Glance(image("queued", instance))
    glance.failure = failure
    found = images(glance)
    found.add(instance)
    for _ in range(2):
        with pytest.raises(exception.GlanceUnavailable, match="refused"):
            found.sweep()
    glance.failure = None
    found.sweep()
    assert glance.images == {}


@pytest.mark.parametrize(
    "failure",
    [
        nova_exception.Forbidden("not an administrator"),
        keystone_exceptions.Unauthorized("not an administrator"),
        glance_errors.HTTPInternalServerError("not an administrator"),
    ],
)
def test_refusal_is_logged_and_final(
    images: Images, instance: Any, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    glance = Glance(image("queued", instance))
    glance.failure = failure
    found = images(glance)
    found.add(instance)
    found.sweep()
    assert "--status queued --project p1" in caplog.text
    assert "not an administrator" in caplog.text
    glance.failure = None
    found.sweep()
    assert set(glance.images) == {"queued"}


def test_without_credentials_the_operator_is_told(
    instance: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    # The options of the test have no [service_user].
    found = cut_off.CutOffImages(Glance(image("queued", instance)), cut_off.service_user, tmp_path)
    found.add(instance)
    found.sweep()
    assert "[service_user] of nova-compute has no credentials" in caplog.text


def test_image_that_its_owner_deletes_meanwhile(images: Images, instance: Any) -> None:
    glance = Glance(image("queued", instance))
    found = images(glance)
    found.add(instance)
    listed = list(glance.images.values())
    glance.images.clear()
    glance.get_all = lambda *_, **__: listed  # type: ignore[method-assign]
    found.sweep()


def test_a_second_death_before_the_sweep(images: Images, instance: Any, tmp_path: Path) -> None:
    """Nova's database has no trace of the snapshot any more."""
    glance = Glance(image("queued", instance))
    images(glance).add(instance)
    # nova-compute died while it wrote the file of another instance.
    (tmp_path / "cut-off-images" / ".another.0a1b2c3d").touch()
    now = timeutils.utcnow(with_timezone=True)
    glance.images["elsewhere"] = image("elsewhere", instance, status="saving", created_at=now)
    again = images(glance)
    again.sweep()
    assert set(glance.images) == {"elsewhere"}
    glance.images["queued"] = image("queued", instance)
    again.sweep()
    assert "queued" in glance.images


def test_filters_reach_glance_as_they_are() -> None:
    filters = {"status": "queued", "instance_uuid": "server"}
    adopted = nova_glance._extract_query_params_v2({"filters": dict(filters)})
    assert adopted == {"filters": filters}
