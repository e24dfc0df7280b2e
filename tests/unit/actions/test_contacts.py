# SPDX-License-Identifier: Apache-2.0
"""The contacts of projects, on a fake of Keystone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from keystoneauth1 import exceptions as auth_exceptions
from openstack import exceptions
from openstack.identity.v3.project import Project
from prometheus_client import CollectorRegistry

from novadocker.actions import contacts as contacts_module
from novadocker.actions.contacts import Contacts, contacts
from novadocker.cmd import contacts as command
from novadocker.exporter.rendering import render
from tests.waiting import until


class Identity:
    """A fake of Keystone, with a list of projects."""

    def __init__(self, *projects: dict[str, Any]) -> None:
        self.listed = [Project.existing(**project) for project in projects]
        self.errors: list[Exception] = []

    def projects(self) -> list[Project]:
        if self.errors:
            raise self.errors.pop()
        return self.listed


def make(identity: Identity) -> Contacts:
    return Contacts(SimpleNamespace(identity=identity))  # type: ignore[arg-type]


def page(found: Contacts) -> str:
    registry = CollectorRegistry()
    registry.register(found)
    return render(registry.collect()).decode()


def test_the_metric_has_the_contact_of_each_project() -> None:
    identity = Identity({"id": "p1", "contact": "owner@example.org"}, {"id": "p2"})
    found = make(identity)
    found.ask()
    expected = 'novadocker_project_contact{project="p1",contact="owner@example.org"} 1'
    assert [line for line in page(found).splitlines() if not line.startswith("#")] == [expected]
    identity.errors = [exceptions.HttpException()]
    with pytest.raises(exceptions.HttpException):
        found.ask()
    assert expected in page(found)


@pytest.mark.parametrize(
    "error",
    [exceptions.HttpException(), auth_exceptions.ConnectFailure(), auth_exceptions.Unauthorized()],
)
def test_keystone_is_asked_again_after_a_failure(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(contacts_module, "_EVERY_SECONDS", 0.001)
    identity = Identity({"id": "p1", "contact": "owner@example.org"})
    identity.errors = [error]
    found = make(identity)
    found.start()
    until(lambda: "owner@example.org" in page(found))
    found.stop()
    assert "Failed to read the contacts of projects from Keystone" in caplog.text


@pytest.mark.parametrize(
    "contact",
    [
        "a@example.org, b@example.org",
        "a@example.org\nBcc: b@example.org",
        "a@example.org\n",
        "Owner <a@example.org>",
        "example.org",
        "",
        7,
        ["a@example.org"],
    ],
)
def test_what_is_no_single_address_is_nobodys(contact: object) -> None:
    assert contacts([{"id": "p1", "contact": contact}]) == {}


def test_the_command_wants_a_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "password").write_text("user:secret")
    (tmp_path / "password").chmod(0o644)
    with pytest.raises(SystemExit):
        command.main(["--password-file", str(tmp_path / "password")])
    assert "give access to all users" in capsys.readouterr().err
