# SPDX-License-Identifier: Apache-2.0
"""Alarms' actions on servers, on a fake of Nova's API."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from keystoneauth1 import exceptions as auth_exceptions
from openstack import exceptions

from novadocker.actions import hook, policy
from novadocker.actions.policy import Policy, PolicyError
from novadocker.cmd import act
from tests import CHECKOUT

UUID = "11111111-2222-3333-4444-555555555555"
SAMPLE = CHECKOUT / "etc" / "novadocker" / "actions.yml"
RULE = {"alarm": "Bomb", "action": "pause", "undo": True, "spared_projects": ["spared"]}


class Compute:
    """A fake of Nova's API, with one server."""

    def __init__(self, status: str = "ACTIVE", project: str = "p1") -> None:
        self.server = SimpleNamespace(
            id=UUID,
            status=status,
            project_id=project,
            metadata={},
            task_state=None,
            flavor={"original_name": "large"},
        )
        self.refuses = self.confirms = False
        self.calls: list[str] = []
        self.error: Exception | None = None

    def get_server(self, uuid: str) -> Any:
        if uuid != UUID:
            raise exceptions.NotFoundException
        return self.server

    def set_server_metadata(self, server: Any, **metadata: str) -> None:
        server.metadata.update(metadata)

    def delete_server_metadata(self, server: Any, keys: list[str]) -> None:
        for key in keys:
            del server.metadata[key]

    def pause_server(self, server: Any) -> None:
        self._fail()
        self.calls.append("pause")
        server.status = "PAUSED"

    def find_flavor(self, name: str) -> Any:
        return name if name in ("large", "small") else None

    def _fail(self) -> None:
        if self.error:
            raise self.error

    def resize_server(self, server: Any, flavor: str) -> None:
        self.calls.append(f"resize {flavor}")
        server.task_state = "resize_prep"
        if not self.refuses:
            self.before, server.flavor["original_name"] = server.flavor["original_name"], flavor
            server.status = "ACTIVE" if self.confirms else "VERIFY_RESIZE"
        self._fail()

    def revert_server_resize(self, server: Any) -> None:
        self.calls.append("revert")
        server.flavor["original_name"], server.status = self.before, "ACTIVE"

    def unpause_server(self, server: Any) -> None:
        self.calls.append("unpause")
        server.status = "ACTIVE"


def make(compute: Compute, clock: list[float] | None = None, **changes: Any) -> hook.Hook:
    content = {"enabled": True, "rules": [RULE], **changes}
    times = clock or [0.0]
    return hook.Hook(
        SimpleNamespace(compute=compute),  # type: ignore[arg-type]
        policy.parse(content),
        clock=lambda: times[0],
        # Nova completes its task.
        sleep=lambda _: setattr(compute.server, "task_state", None),
    )


def alert(status: str = "firing", **changes: str) -> dict[str, Any]:
    labels = {"alertname": "Bomb", "severity": "page", "uuid": UUID, "project": "p1", **changes}
    return {"status": status, "labels": labels}


def test_a_page_pauses_the_culprit_once() -> None:
    compute = Compute()
    found = make(compute)
    found.take([alert()])
    found.take([alert()])
    assert compute.calls == ["pause"]
    assert compute.server.metadata == {hook.METADATA: "Bomb"}


@pytest.mark.parametrize(
    "changes",
    [
        {"severity": "critical"},
        {"alertname": "Other"},
        {"project": "spared"},
        {"project": "p2"},
        {"uuid": ""},
        {"uuid": "99999999-2222-3333-4444-555555555555"},
    ],
)
def test_nothing_is_done_to_others(changes: dict[str, str]) -> None:
    compute = Compute()
    make(compute).take([alert(**changes)])
    assert compute.calls == []


def test_a_server_that_does_not_run_is_left_alone() -> None:
    compute = Compute(status="SHUTOFF")
    make(compute).take([alert()])
    assert compute.calls == []
    assert compute.server.metadata == {}


def test_it_is_off_by_default() -> None:
    compute = Compute()
    make(compute, enabled=False).take([alert()])
    assert compute.calls == []
    assert not policy.parse({"rules": [RULE]}).enabled
    assert not policy.read(SAMPLE).enabled


def test_the_end_of_the_alarm_undoes_it() -> None:
    compute = Compute()
    found = make(compute)
    found.take([alert()])
    found.take([alert("resolved")])
    found.take([alert("resolved")])
    assert compute.calls == ["pause", "unpause"]
    assert compute.server.metadata == {}


def test_what_somebody_else_paused_stays_paused() -> None:
    compute = Compute(status="PAUSED")
    found = make(compute)
    found.take([alert()])
    found.take([alert("resolved")])
    assert compute.calls == []


def test_without_undo_the_operator_decides() -> None:
    compute = Compute()
    found = make(compute, rules=[{**RULE, "undo": False}])
    found.take([alert()])
    found.take([alert("resolved")])
    assert compute.calls == ["pause"]


def test_no_rule_stops_a_whole_cloud() -> None:
    compute, now = Compute(), [0.0]
    found = make(compute, now, most_per_hour=2)
    for _ in range(5):
        found.take([alert()])
        compute.server.status = "ACTIVE"
    assert compute.calls == ["pause"] * 2
    now[0] += 3601
    found.take([alert()])
    assert compute.calls == ["pause"] * 3


THROTTLE = {**RULE, "action": "throttle", "flavors": {"large": "small", "huge": "absent"}}
THROTTLED = {hook.METADATA_THROTTLED: "Bomb", hook.METADATA_FLAVOR: "large"}


@pytest.mark.parametrize("confirms", [False, True])
def test_throttling_is_a_resize_and_is_undone(confirms: bool) -> None:
    compute = Compute()
    compute.confirms = confirms
    found = make(compute, rules=[THROTTLE])
    found.take([alert()])
    found.take([alert()])
    assert compute.calls == ["resize small"]
    assert compute.server.metadata == THROTTLED
    found.take([alert("resolved")])
    found.take([alert("resolved")])
    assert compute.calls[1:] == ["resize large" if confirms else "revert"]
    assert compute.server.flavor["original_name"] == "large"
    assert compute.server.metadata == {}


def test_throttling_that_nova_refuses_is_not_told_as_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    compute = Compute()
    compute.refuses = True
    make(compute, rules=[THROTTLE]).take([alert()])
    assert compute.server.metadata == {}
    assert "refused" in caplog.text


@pytest.mark.parametrize("done", [False, True])
def test_throttling_that_broke_off_is_gone_on_with(done: bool) -> None:
    compute = Compute()
    # Either Nova received the request and its response was lost, or Nova did not receive it.
    compute.error, compute.refuses = auth_exceptions.ConnectTimeout(), not done
    found = make(compute, rules=[THROTTLE])
    with pytest.raises(auth_exceptions.ConnectTimeout):
        found.take([alert()])
    compute.error, compute.refuses = None, False
    found.take([alert()])
    found.take([alert()])
    assert compute.calls == ["resize small"] * (1 if done else 2)
    assert compute.server.flavor["original_name"] == "small"
    assert compute.server.metadata == THROTTLED


def test_who_undoes_the_throttling_is_not_overruled() -> None:
    compute = Compute()
    found = make(compute, rules=[THROTTLE])
    found.take([alert()])
    compute.revert_server_resize(compute.server)
    found.take([alert()])
    assert compute.calls == ["resize small", "revert"]


@pytest.mark.parametrize("flavor", ["tiny", "huge"])
def test_a_server_without_a_smaller_flavor_is_left_alone(flavor: str) -> None:
    compute = Compute()
    compute.server.flavor["original_name"] = flavor
    make(compute, rules=[THROTTLE]).take([alert()])
    assert compute.calls == []
    assert compute.server.metadata == {}


def test_what_somebody_else_resized_stays() -> None:
    compute = Compute(status="VERIFY_RESIZE")
    found = make(compute, rules=[THROTTLE])
    found.take([alert()])
    found.take([alert("resolved")])
    assert compute.calls == []


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {"enabled": "yes"},
        {"enable": True},
        {"most_per_hour": 0},
        {"most_per_hour": True},
        {"rules": {}},
        {"rules": [{"alarm": "Bomb"}]},
        {"rules": [{"action": "pause"}]},
        {"rules": [{**RULE, "action": "delete"}]},
        {"rules": [{**RULE, "undo": "never"}]},
        {"rules": [{**RULE, "projects": ["p"]}]},
        {"rules": [{**RULE, "spared_projects": "p"}]},
        {"rules": [{**RULE, "flavors": {"large": "small"}}]},
        {"rules": [{**RULE, "action": "throttle"}]},
        {"rules": [{**RULE, "action": "throttle", "flavors": ["small"]}]},
        {"rules": [{**RULE, "action": "throttle", "flavors": {"large": 1}}]},
    ],
)
def test_a_policy_with_a_mistake_is_none(content: object) -> None:
    with pytest.raises(PolicyError):
        policy.parse(content)


def test_a_file_that_is_no_yaml_is_none(tmp_path: Path) -> None:
    (tmp_path / "policy").write_text("rules: [")
    with pytest.raises(PolicyError):
        policy.read(tmp_path / "policy")


def post(found: hook.Hook, body: bytes, method: str = "POST", size: str | None = None) -> str:
    told: list[str] = []
    environment = {
        "REQUEST_METHOD": method,
        "CONTENT_LENGTH": str(len(body)) if size is None else size,
        "wsgi.input": io.BytesIO(body),
    }
    hook.make_application(found)(environment, lambda status, headers: told.append(status))
    return told[0][:3]


def test_the_webhook() -> None:
    compute = Compute()
    found = make(compute)
    body = json.dumps({"version": "4", "alerts": [alert()]}).encode()
    assert post(found, body, method="GET") == "405"
    assert post(found, body) == "200"
    assert compute.calls == ["pause"]


@pytest.mark.parametrize("error", [exceptions.HttpException(), auth_exceptions.ConnectTimeout()])
def test_alertmanager_tries_again_when_nova_failed(error: Exception) -> None:
    compute = Compute()
    compute.error = error
    found = make(compute)
    body = json.dumps({"alerts": [alert()]}).encode()
    assert post(found, body) == "503"
    compute.error = None
    assert post(found, body) == "200"
    assert compute.calls == ["pause"]


@pytest.mark.parametrize(
    ("body", "size"),
    [
        (b"nonsense", None),
        (b"[]", None),
        (b'{"alerts": [{}]}', None),
        (b'{"alerts": [{"status": "firing", "labels": {"uuid": 1}}]}', None),
        (b"{}", "-1"),
        (b"{}", "9999999999"),
        (b"{}", "many"),
        (b"", None),
    ],
)
def test_what_is_no_message_is_refused(body: bytes, size: str | None) -> None:
    assert post(make(Compute()), body, size=size) == "400"


def test_the_command_refuses_a_bad_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    password, bad = tmp_path / "password", tmp_path / "policy"
    password.write_text("user:secret")
    password.chmod(0o600)
    bad.write_text(yaml.safe_dump({"rules": [{"alarm": "x", "action": "delete"}]}))
    with pytest.raises(SystemExit):
        act.main(["--policy", str(bad), "--password-file", str(password)])
    assert "not one of pause, throttle" in capsys.readouterr().err


def test_labels_without_an_alarm_are_nothing() -> None:
    assert Policy(enabled=True).find({}) is None
