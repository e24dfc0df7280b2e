# SPDX-License-Identifier: Apache-2.0
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from keystoneauth1 import exceptions as keystone_exceptions
from keystoneauth1 import token_endpoint
from neutronclient.common import exceptions as neutron_exceptions
from nova import context as nova_context
from nova import exception as nova_exception
from oslo_privsep import comm, daemon

from novadocker import exception
from novadocker.virt.docker.network import metadata, neutron
from tests.unit.conftest import network_info
from tests.unit.fakes import FakeVirtAPI

PORT = "0e6e0b4b-7a41-4f0b-9f1a-0f64e1f5a1c1"


def wait(virtapi: FakeVirtAPI, instance: Any, active: bool = False) -> list[str]:
    done = []
    with neutron.plugged(
        virtapi,
        instance,
        network_info(active),
        lambda *_: contextlib.nullcontext(done.append("plugging")),
        lambda *_: done.append("plugging anew"),
    ):
        done.append("body")
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
    assert wait(virtapi, instance, active) == ["plugging", "body"]
    assert virtapi.awaited == events


@pytest.mark.parametrize(
    ("outcome", "text"), [("late", f"{PORT} as wired within 300 s"), ("failed", "a failure")]
)
def test_a_missing_event(instance: Any, options: Any, outcome: str, text: str) -> None:
    options(vif_plugging_is_fatal=True)
    with pytest.raises(exception.StartFailed, match=text):
        wait(FakeVirtAPI(outcome), instance)
    options(vif_plugging_is_fatal=False)
    assert wait(FakeVirtAPI(outcome), instance) == ["plugging", "body"]


@pytest.mark.parametrize(
    "fault",
    [
        None,
        exception.PlugFailed(port_id=PORT, reason="the switch is away"),
        exception.EngineUnavailable(url="fake", reason="the engine is away"),
        OSError("the switch is away"),
        comm.PrivsepTimeout("60 s"),
        daemon.FailedToDropPrivileges("sudo refuses"),
    ],
)
def test_ports_are_plugged_anew_once_while_neutron_is_silent(
    instance: Any, options: Any, caplog: pytest.LogCaptureFixture, fault: Exception | None
) -> None:
    options(vif_plugging_timeout=1)
    coming, ports, anew = threading.Event(), network_info(False), []
    nothing = contextlib.nullcontext()

    def plug_anew(*arguments: object) -> None:
        anew.append(arguments)
        coming.set()
        if fault:
            raise fault

    with neutron.plugged(
        FakeVirtAPI(coming=coming), instance, ports, lambda *_: nothing, plug_anew
    ):
        assert not anew
    assert anew == [(instance, ports)]
    failures = [vars(record) for record in caplog.records if "Failed" in record.getMessage()]
    # A formatter of oslo.log replaces the instance of a record by its text.
    assert [
        (failure["message"], instance.uuid in str(failure["instance"])) for failure in failures
    ] == ([(f"Failed to plug the ports again: {fault}", True)] if fault else [])


class Client:
    """A fake of Neutron's client, which refuses the first report."""

    def __init__(self, refusal: Exception) -> None:
        self._refusal = refusal
        self.reported: list[tuple[str, Any]] = []

    def update_port(self, port: str, body: Any) -> None:
        self.reported.append((port, body))
        if len(self.reported) == 1:
            raise self._refusal


@pytest.mark.parametrize(
    "refusal",
    [
        neutron_exceptions.Conflict(message="not allowed"),
        nova_exception.Forbidden("not allowed"),
    ],
)
def test_report_that_fails_is_logged_and_the_others_go_on(
    instance: Any, caplog: pytest.LogCaptureFixture, refusal: Exception
) -> None:
    client, (port,) = Client(refusal), network_info(False)
    neutron.report_wired(instance, [port, port], lambda: client)
    assert client.reported == [(PORT, {"port": {"data_plane_status": "ACTIVE"}})] * 2
    assert f"port {PORT} is wired: not allowed" in caplog.text


class Listing:
    """A fake of Neutron's client that lists ports, and applies the filters of Neutron."""

    def __init__(self, *ports: dict[str, str], failure: Exception | None = None) -> None:
        self._ports = ports
        self._failure = failure

    def list_ports(self, fields: list[str], **filters: str) -> dict[str, list[dict[str, str]]]:
        if self._failure:
            raise self._failure
        wanted = filters.items()
        return {
            "ports": [
                {field: port[field] for field in fields}
                for port in self._ports
                if all(port[key] == value for key, value in wanted)
            ]
        }


def listed(port: str, device: str, host: str = "host1", **others: str) -> dict[str, str]:
    return {
        "id": port,
        "device_id": device,
        "device_owner": "compute:nova",
        "status": "ACTIVE",
        "binding:host_id": host,
        **others,
    }


def test_bound_ports() -> None:
    client = Listing(
        listed("p1", "s1"),
        listed("p2", "s1"),
        listed("p3", "s2"),
        listed("p4", "s2", host="host2"),
        listed("p5", "dhcp1", device_owner="network:dhcp"),
    )
    assert neutron.bound_ports("host1", lambda: client) == {"s1": {"p1", "p2"}, "s2": {"p3"}}


def test_nova_keeps_a_port_that_its_cache_lacks(
    instance: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nova deletes a port at its detachment unless it knows that it existed before."""
    other = "0e6e0b4b-7a41-4f0b-9f1a-0f64e1f5a1c2"
    asked = {}

    class API:
        def get_instance_nw_info(self, *_: Any, **words: Any) -> str:
            asked.update(words)
            return "ports"

    monkeypatch.setattr(neutron.neutron, "API", API)
    client = Listing(listed(PORT, instance.uuid), listed(other, instance.uuid))
    found = neutron.refresh_ports(None, instance, lambda: client)
    assert found == "ports"
    assert asked == {
        "force_refresh": True,
        "preexisting_port_ids": [other],
        "admin_client": client,
    }


def test_active_ports(instance: Any) -> None:
    client = Listing(
        listed("p1", instance.uuid),
        listed("p2", instance.uuid, status="DOWN"),
        listed("p3", instance.uuid, host="host2"),
        listed("p4", "another server"),
    )
    assert neutron.active_ports(instance, "host1", lambda: client) == {"p1"}


@pytest.mark.parametrize(
    "failure",
    [
        neutron_exceptions.ConnectionFailed(reason="refused"),
        keystone_exceptions.ConnectFailure("refused"),
        nova_exception.NeutronAdminCredentialConfigurationInvalid("refused"),
        nova_exception.Forbidden("refused"),
    ],
)
def test_neutron_that_does_not_answer(
    instance: Any, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    client = Listing(failure=failure)
    with pytest.raises(exception.NeutronUnavailable, match="refused"):
        neutron.bound_ports("host1", lambda: client)
    assert neutron.active_ports(instance, "host1", lambda: client) == frozenset()
    assert neutron.ServicePorts(lambda: client).find(["net1"]) is None
    assert "Failed to read the status of the ports: Neutron does not answer" in caplog.text


def test_event_that_came_before_the_wait(instance: Any, options: Any) -> None:
    options(vif_plugging_timeout=300, vif_plugging_is_fatal=True)
    virtapi = FakeVirtAPI("late")
    nothing = contextlib.nullcontext()
    with neutron.plugged(
        virtapi, instance, network_info(), lambda *_: nothing, lambda *_: None, lambda: {PORT, "p"}
    ):
        pass
    assert virtapi.awaited == []


class ServiceListing:
    """A fake of Neutron's client, with one port."""

    def __init__(self, failure: Exception | None = None) -> None:
        self._failure = failure

    def list_ports(self, fields: Any, **filters: Any) -> Any:
        if self._failure:
            raise self._failure
        assert filters["network_id"] == ["net1"]
        port = {
            "network_id": "net1",
            "device_owner": "network:dhcp",
            "device_id": "dhcp1",
            "fixed_ips": [{"subnet_id": "s", "ip_address": "10.0.0.2"}],
        }
        assert port.keys() <= set(fields)
        return {"ports": [port]}


def test_service_ports(caplog: pytest.LogCaptureFixture) -> None:
    assert neutron.ServicePorts(ServiceListing).find(["net1"]) == (
        metadata.ServicePort("net1", "network:dhcp", "dhcp1", ("10.0.0.2",)),
    )
    assert neutron.ServicePorts(lambda: pytest.fail("asked for nothing")).find([]) == ()
    away = ServiceListing(neutron_exceptions.ConnectionFailed(reason="away"))
    assert neutron.ServicePorts(lambda: away).find(["net1"]) is None
    assert "may lack the route to the metadata service" in caplog.text


def test_neutron_that_was_slow_to_fail_is_not_asked_for_a_minute() -> None:
    now, asked, seconds = [100.0], [], [10.0, 0.1, 0.1]

    def ask() -> Any:
        asked.append(now[0])
        now[0] += seconds[len(asked) - 1]
        raise keystone_exceptions.ConnectTimeout("no answer")

    ports = neutron.ServicePorts(ask, lambda: now[0])
    assert ports.find(["net1"]) is None
    now[0] += 59
    assert ports.find(["net1"]) is None
    assert asked == [100.0]
    now[0] += 2
    # A failure that took no time causes no pause.
    for _ in range(2):
        assert ports.find(["net1"]) is None
    assert len(asked) == 3


@pytest.fixture
def silent_neutron(monkeypatch: pytest.MonkeyPatch, options: Any) -> Iterator[Callable[[], int]]:
    """Run a Neutron that accepts and does not answer; yield the count of attempts, once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        options(group="neutron", endpoint_override=url, http_retries=3)
        auth = token_endpoint.Token(url, "token")
        monkeypatch.setattr(neutron.neutron, "_get_auth_plugin", lambda *_, **__: auth)
        monkeypatch.setattr(neutron, "_LONGEST_ANSWER_SECONDS", 0.1)

        def attempts() -> int:
            made = []
            server.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    made.append(server.accept()[0].close())
            return len(made)

        neutron._bounded_session.cache_clear()
        yield attempts
        neutron._bounded_session.cache_clear()


def test_neutron_that_accepts_and_does_not_answer(silent_neutron: Callable[[], int]) -> None:
    assert neutron.ServicePorts().find(["net1"]) is None
    assert silent_neutron() == 1
    own = neutron.neutron.get_client(nova_context.get_admin_context(), admin=True)
    assert own.base_client.httpclient.session.timeout is None


def test_all_questions_to_a_silent_neutron_end(
    silent_neutron: Callable[[], int], instance: Any
) -> None:
    """Each question is repeated ``[neutron] http_retries`` times."""
    with pytest.raises(exception.NeutronUnavailable):
        neutron.bound_ports("host1")
    assert neutron.active_ports(instance, "host1") == frozenset()
    with pytest.raises(exception.NeutronUnavailable):
        neutron.refresh_ports(None, instance)
    assert silent_neutron() == 3 * 4
