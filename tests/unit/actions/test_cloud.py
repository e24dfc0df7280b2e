# SPDX-License-Identifier: Apache-2.0
"""Errors of the cloud's APIs when they do not answer."""

import socket

import pytest

from novadocker.actions import cloud


def test_an_api_that_is_silent_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "_ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        known = {
            "AUTH_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/v3",
            "USERNAME": "operator",
            "PASSWORD": "secret",
            "PROJECT_NAME": "admin",
            "USER_DOMAIN_ID": "default",
            "PROJECT_DOMAIN_ID": "default",
        }
        for name, value in known.items():
            monkeypatch.setenv(f"OS_{name}", value)
        monkeypatch.delenv("OS_CLOUD", raising=False)
        with cloud.connect() as connection, pytest.raises(cloud.ERRORS):
            list(connection.identity.projects())
