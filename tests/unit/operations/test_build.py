# SPDX-License-Identifier: Apache-2.0
"""What Nova's manager makes of a build that fails before ``spawn``."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from cursive.exception import SignatureVerificationError
from glanceclient import exc as glance_errors
from keystoneauth1 import exceptions as keystone_errors
from nova import exception as nova_exception
from nova import objects
from nova.compute import manager, task_states

from novadocker import exception
from tests.unit import fakes
from tests.unit.fakes import FakeHost

IMAGE = "7a2f1ab6-6a8e-4d69-8a3e-0b1f5f8a3c11"


@pytest.fixture
def build(
    driver: Any,
    instance: Any,
    fake_host: FakeHost,
    network_info: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Return a function that does what Nova's manager does before it calls ``spawn``."""
    monkeypatch.setattr(objects.Instance, "save", Mock())
    instance.image_ref = IMAGE
    fake_host.instances = {instance.uuid: objects.Instance(task_state=task_states.NETWORKING)}
    compute = Mock(driver=driver)
    compute._build_networks_for_instance.return_value = network_info
    image_meta = fake_host.images.describe(None, IMAGE)

    def call() -> None:
        resources = manager.ComputeManager._build_resources(
            compute, None, instance, [], [], image_meta, [], None, []
        )
        with resources:
            pass

    return call


def bad_image(host: FakeHost, instance: Any) -> None:
    host.images.image = replace(host.images.image, volumes=("/v",) * 300)


def bad_property(host: FakeHost, instance: Any) -> None:
    host.images.properties = {"os_command_line": "sh -c 'unclosed"}


def bad_account(host: FakeHost, instance: Any) -> None:
    host.images.properties = {"os_admin_user": "root:x"}


def bad_key(host: FakeHost, instance: Any) -> None:
    instance.key_data = "ssh-rsa A\nssh-rsa B\x00"


def bad_limit(host: FakeHost, instance: Any) -> None:
    instance.flavor.extra_specs = {"docker:pids_limit": "many"}


def ephemeral_disk(host: FakeHost, instance: Any) -> None:
    instance.flavor.ephemeral_gb = 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (bad_image, "has 300 volumes"),
        (bad_property, "os_command_line"),
        (bad_account, "os_admin_user"),
        (bad_key, "key"),
        (bad_limit, "docker:pids_limit"),
        (ephemeral_disk, "an ephemeral disk"),
    ],
)
def test_a_refused_build_is_one_warning_and_no_traceback(
    build: Any,
    driver: Any,
    instance: Any,
    fake_host: FakeHost,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[FakeHost, Any], None],
    words: str,
) -> None:
    spoil(fake_host, instance)
    with pytest.raises(nova_exception.BuildAbortException, match=words):
        build()
    fakes.check_one_warning(caplog, instance.uuid, words)
    assert driver._services.build_failures.count == 0


@pytest.mark.parametrize(
    "error",
    [
        # What the manager takes for the tenant's fault.
        SignatureVerificationError(reason="no such certificate"),
        nova_exception.CertificateValidationFailed(cert_uuid="c", reason="expired"),
        nova_exception.ImageNotActive(image_id=IMAGE),
        nova_exception.ImageNotFound(image_id=IMAGE),
        nova_exception.InvalidInput(reason="no"),
    ],
)
def test_what_the_manager_gives_up_is_not_the_hosts_fault(
    build: Any,
    driver: Any,
    instance: Any,
    fake_host: FakeHost,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    monkeypatch.setattr(fake_host.images, "ensure", Mock(side_effect=error))
    with pytest.raises(nova_exception.BuildAbortException):
        build()
    fakes.check_one_warning(caplog, instance.uuid, str(error))
    assert driver._services.build_failures.count == 0


@pytest.mark.parametrize(
    "error",
    [
        nova_exception.GlanceConnectionFailed(server="glance", reason="refused"),
        nova_exception.ImageNotFound(image_id=IMAGE),
        keystone_errors.ConnectFailure("refused"),
        glance_errors.HTTPServiceUnavailable(),
    ],
)
def test_a_build_goes_on_without_glance(
    build: Any,
    driver: Any,
    instance: Any,
    fake_host: FakeHost,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    monkeypatch.setattr(fake_host.images, "describe", Mock(side_effect=error))
    build()
    fakes.check_one_warning(caplog, instance.uuid, f"the record of image {IMAGE}: ")
    assert driver._services.build_failures.count == 0
    assert fake_host.images.trusted == []


@pytest.mark.parametrize(
    "error",
    [
        exception.DownloadFailed(image_id=IMAGE, reason="no room"),
        exception.EngineUnavailable(url="unix:///x", reason="refused"),
        OSError("no space left on device"),
    ],
)
def test_a_host_that_cannot_load_an_image_is_one_warning_and_another_is_tried(
    build: Any,
    driver: Any,
    instance: Any,
    fake_host: FakeHost,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    monkeypatch.setattr(fake_host.images, "ensure", Mock(side_effect=error))
    with pytest.raises(nova_exception.ComputeResourcesUnavailable, match=str(error)):
        build()
    fakes.check_one_warning(caplog, instance.uuid, str(error))
    assert driver._services.build_failures.count == 1


def test_a_fault_of_the_driver_keeps_its_traceback(
    build: Any,
    fake_host: FakeHost,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fake_host.images, "ensure", Mock(side_effect=TypeError("a bug")))
    with pytest.raises(nova_exception.BuildAbortException):
        build()
    assert "TypeError: a bug" in caplog.text


@pytest.mark.parametrize("found", [task_states.DELETING, None])
def test_an_instance_that_was_deleted_during_the_download_is_not_built(
    build: Any,
    driver: Any,
    instance: Any,
    fake_host: FakeHost,
    caplog: pytest.LogCaptureFixture,
    found: str | None,
) -> None:
    fake_host.instances[instance.uuid].task_state = found
    if found is None:
        fake_host.read_instance = Mock(side_effect=nova_exception.InstanceNotFound(instance_id="i"))
        driver._services.read_instance = fake_host.read_instance
    with pytest.raises(exception.DELETED):
        build()
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []
    assert driver._services.build_failures.count == 0


def test_a_good_build_is_prepared_and_counts_for_nothing(
    build: Any, driver: Any, fake_host: FakeHost
) -> None:
    driver._services.build_failures.count = 2
    build()
    assert len(fake_host.images.trusted) == 1
    assert driver._services.build_failures.count == 2


def test_an_instance_that_boots_from_a_volume_has_no_image_to_prepare(
    build: Any, instance: Any, fake_host: FakeHost
) -> None:
    instance.image_ref = ""
    build()
    assert fake_host.images.trusted == []
