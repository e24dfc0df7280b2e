# SPDX-License-Identifier: Apache-2.0
"""The programs that serve on the loopback address: clients that are slow."""

from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from novadocker.actions.contacts import Contacts
from novadocker.cmd import act, contacts
from novadocker.exporter import serving
from tests import CHECKOUT
from tests.unit.exporter.test_serving import AUTHORIZATION, GET, PASSWORD, answer, is_open, served

POLICY = CHECKOUT / "etc" / "novadocker" / "actions.yml"


@pytest.mark.parametrize(
    ("program", "arguments", "content"),
    [
        (act, ["--policy", str(POLICY)], b"HTTP/1.0 405 "),
        (contacts, [], b"HTTP/1.0 200 "),
    ],
    ids=["act", "contacts"],
)
def test_slow_clients_do_not_shut_others_out(
    program: ModuleType,
    arguments: list[str],
    content: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    password = tmp_path / "password"
    password.write_bytes(PASSWORD + b"\n")
    password.chmod(0o600)
    answers: list[bytes] = []

    def run(_address: Any, _port: int, application: serving.Application) -> int:
        with served(application) as connect:
            slow = [connect(GET) for _ in range(40)]
            for _ in range(3):
                answers.append(answer(connect(GET + AUTHORIZATION + b"\r\n")))
            # The oldest ones were disconnected, and no more than necessary.
            still_open = [is_open(client) for client in slow[-17:]]
            assert still_open == [False] * 2 + [True] * 15
        return 0

    monkeypatch.setattr(serving, "run", run)
    monkeypatch.setattr(serving, "hold_stops", lambda: None)
    monkeypatch.setattr(Contacts, "start", lambda _contacts: None)
    monkeypatch.setattr(program.cloud, "connect", nullcontext)
    assert program.main(["--password-file", str(password), *arguments]) == 0
    assert [found[: len(content)] for found in answers] == [content] * 3
