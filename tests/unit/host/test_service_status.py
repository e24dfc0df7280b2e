# SPDX-License-Identifier: Apache-2.0
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import oslo_messaging
import pytest
from nova import exception as nova_exception
from nova import objects

from novadocker.virt.docker.host import service_status
from novadocker.virt.docker.host.service_status import ServiceStatus
from tests.waiting import until

HOST = "host1"
PROVIDER = "5e0e6b29-1b4e-4d83-8a4e-3a57d9a6a0b2"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return Nova's record of the service."""
    record = SimpleNamespace(
        disabled=False,
        disabled_reason=None,
        save=Mock(),
        compute_node=SimpleNamespace(uuid=PROVIDER),
    )
    read = Mock(return_value=record)
    record.read = read
    monkeypatch.setattr(objects.Service, "get_by_compute_host", read)
    return record


@pytest.fixture
def virtapi() -> Mock:
    return Mock()


@pytest.fixture
def status(virtapi: Mock, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceStatus]:
    monkeypatch.setattr(service_status, "_AGAIN_SECONDS", 0.01)
    found = ServiceStatus(virtapi)
    found.start(HOST)
    yield found
    found.stop()


def test_disabled_while_the_engine_is_away(
    status: ServiceStatus, service: Any, virtapi: Mock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, service_status.__name__)
    status.report(None)
    for _ in range(3):
        status.report("the engine does not answer")
    until(lambda: service.disabled)
    until(lambda: virtapi.update_compute_provider_status.called)
    assert service.disabled_reason == "AUTO: the Docker engine of the host does not answer"
    assert virtapi.update_compute_provider_status.call_args.args[1] == PROVIDER
    assert virtapi.update_compute_provider_status.call_args.kwargs == {"enabled": False}
    for _ in range(3):
        status.report(None)
    until(lambda: not service.disabled)
    until(lambda: virtapi.update_compute_provider_status.call_count == 2)
    assert service.disabled_reason is None
    assert virtapi.update_compute_provider_status.call_args.kwargs == {"enabled": True}
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("reason", ["maintenance", None, ""])
def test_an_operators_disabling_stays(service: Any, virtapi: Mock, reason: str | None) -> None:
    service.disabled, service.disabled_reason = True, reason
    for enabled in (False, True):
        service_status.set_enabled(virtapi, HOST, enabled)
    assert (service.disabled, service.disabled_reason) == (True, reason)
    assert not service.save.called


def test_what_an_earlier_nova_compute_disabled_is_enabled(
    status: ServiceStatus, service: Any
) -> None:
    service.disabled, service.disabled_reason = True, service_status.REASON
    status.report(None)
    until(lambda: not service.disabled)


def test_a_conductor_that_is_away_is_asked_again(status: ServiceStatus, service: Any) -> None:
    record = service.read.return_value
    service.read.side_effect = [oslo_messaging.MessagingTimeout(), record]
    status.report("the engine does not answer")
    until(lambda: service.disabled)


def test_a_conflict_in_placement_does_not_end_the_thread(
    status: ServiceStatus, service: Any, virtapi: Mock
) -> None:
    change = virtapi.update_compute_provider_status
    change.side_effect = [ValueError(f"No such provider {PROVIDER}"), None, None]
    status.report("the engine does not answer")
    until(lambda: service.disabled)
    assert change.call_count == 2
    status.report(None)
    until(lambda: not service.disabled)
    assert change.call_args.kwargs == {"enabled": True}


def test_a_new_host_has_no_service(service: Any, virtapi: Mock) -> None:
    service.read.side_effect = nova_exception.ComputeHostNotFound(host=HOST)
    service_status.set_enabled(virtapi, HOST, enabled=True)
    assert not service.save.called
