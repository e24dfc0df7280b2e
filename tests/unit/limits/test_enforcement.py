# SPDX-License-Identifier: Apache-2.0
"""What the driver does if limits can't be set; the limits themselves are tests of the engine."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from oslo_privsep import comm, daemon

from novadocker import exception
from novadocker.virt.docker.limits import enforcement
from novadocker.virt.docker.limits.enforcement import Enforcement, LimitedServer
from novadocker.virt.docker.model import Limits
from tests.unit import fakes

UUIDS = ["01234567-89ab-cdef-0123-456789abcdef", "11234567-89ab-cdef-0123-456789abcdef"]
LIMITS = Limits(cpu_shares=1024, memory_bytes=1 << 28, swap_bytes=0, pids=100)
UNANSWERED = pytest.mark.parametrize(
    "failure",
    [comm.PrivsepTimeout("60 s"), daemon.FailedToDropPrivileges("sudo refuses")],
    ids=lambda failure: type(failure).__name__,
)


@pytest.fixture
def enforcer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Enforcement:
    monkeypatch.setattr(enforcement.linux_cgroup, "disk_of", lambda _device: None)
    monkeypatch.setattr(
        enforcement.filesystem, "mount_of", lambda _path: SimpleNamespace(device="tmpfs")
    )
    engine: Any = SimpleNamespace(
        inspect_container=lambda id_: SimpleNamespace(pid=1, id=id_), within=nullcontext
    )
    return Enforcement(engine, fakes.INFO, tmp_path)


@UNANSWERED
def test_a_server_that_fails_does_not_keep_the_limits_from_the_others(
    enforcer: Enforcement,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: Exception,
) -> None:
    monkeypatch.setattr(enforcement.tc, "devices_without_rate", lambda _rates: set())
    monkeypatch.setattr(Enforcement, "_differs", lambda *_: True)
    tried: list[str] = []

    def apply(_enforcer: Enforcement, server: LimitedServer) -> None:
        tried.append(server.instance_uuid)
        raise failure

    monkeypatch.setattr(Enforcement, "_apply", apply)
    enforcer._servers = {uuid: LimitedServer(uuid, uuid, 1, LIMITS, ()) for uuid in UUIDS}
    for _ in range(3):
        enforcer.sweep()
    assert tried == UUIDS * 3
    assert caplog.messages == [
        f"Failed to restore the limits of server {uuid}: {failure}" for uuid in UUIDS
    ]


@pytest.mark.parametrize("failure", [ValueError("no number"), OSError(5, "Input/output error")])
def test_a_server_whose_limits_can_not_be_read_is_logged_once(
    enforcer: Enforcement,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: Exception,
) -> None:
    monkeypatch.setattr(enforcement.tc, "devices_without_rate", lambda _rates: set())
    tried: list[str] = []

    def differs(_enforcer: Enforcement, server: LimitedServer) -> bool:
        tried.append(server.instance_uuid)
        if server.instance_uuid == UUIDS[0]:
            raise failure
        return False

    monkeypatch.setattr(Enforcement, "_differs", differs)
    enforcer._servers = {uuid: LimitedServer(uuid, uuid, 1, LIMITS, ()) for uuid in UUIDS}
    for _ in range(3):
        enforcer.sweep()
    assert tried == UUIDS * 3
    assert caplog.messages == [f"Failed to restore the limits of server {UUIDS[0]}: {failure}"]


@UNANSWERED
def test_an_unanswered_call_is_a_limit_that_is_not_kept(
    enforcer: Enforcement, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """A start of nova-compute goes on after LimitsNotKept only."""

    def fail(*_arguments: object) -> None:
        raise failure

    monkeypatch.setattr(enforcement.tc, "set_port_rates", fail)
    with pytest.raises(exception.LimitsNotKept, match=str(failure)):
        enforcer.limit_ports(UUIDS[0], LIMITS, (("tap1", "eth0"),))
    monkeypatch.setattr(Enforcement, "_apply", fail)
    found: Any = SimpleNamespace(pid=1, id="id")
    with pytest.raises(exception.LimitsNotKept, match=str(failure)):
        enforcer.limit_container(UUIDS[0], found, LIMITS, ())
