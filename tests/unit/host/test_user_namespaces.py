# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
from oslo_privsep import comm

from novadocker import exception
from novadocker.virt.docker.host import user_namespaces
from novadocker.virt.docker.host.user_namespaces import Trial, UserNamespaces
from tests.unit import fakes

IDS = "1879048192:131072"
OVERLAY = replace(fakes.INFO, storage_driver="overlay2")


def test_ids() -> None:
    assert user_namespaces.parse_ids(IDS) == range(1879048192, 1879179264)
    assert user_namespaces.parse_ids("65536:65536") == range(65536, 131072)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "0:65536",
        "65537:65536",
        "65536:65537",
        "65536:0",
        "4294901760:65536",
        "65536:-1",
        "65536:4294901760",
        "65536:65536 ",
        "a:b",
    ],
)
def test_malformed_ids(text: str) -> None:
    with pytest.raises(exception.InvalidConfiguration, match="user_namespace_ids"):
        user_namespaces.parse_ids(text)


@pytest.mark.parametrize(
    ("mode", "reason", "asked", "own"),
    [
        ("host", "", None, False),
        ("host", "", "own", True),
        ("host", "old kernel", "own", True),
        ("own", "", None, True),
        ("own", "", "host", False),
        ("own", "old kernel", None, False),
        ("required", "", None, True),
        ("required", "", "host", False),
    ],
)
def test_which_servers_have_one(mode: str, reason: str, asked: str | None, own: bool) -> None:
    found = user_namespaces.read(OVERLAY, mode, IDS, lambda _: reason)
    assert found == UserNamespaces(mode != "host", range(1879048192, 1879179264), Trial(reason))
    assert found.of_server(asked) == own


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (replace(OVERLAY, user_namespaces=True), "userns-remap"),
        (replace(OVERLAY, storage_driver="vfs"), "vfs"),
        (OVERLAY, "old kernel"),
    ],
)
def test_a_host_that_must_but_cannot(info: object, reason: str) -> None:
    with pytest.raises(exception.InvalidConfiguration, match=reason):
        user_namespaces.read(info, "required", IDS, lambda _: "old kernel")  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [PermissionError("of another user"), ValueError("a space")])
def test_a_data_root_that_the_driver_does_not_use(error: Exception) -> None:
    def refuse(_data_root: str) -> str:
        raise error

    assert user_namespaces.read(OVERLAY, "own", IDS, refuse).trial == Trial(str(error))


def test_a_host_that_cannot(caplog: pytest.LogCaptureFixture) -> None:
    user_namespaces.read(OVERLAY, "own", IDS, lambda _: "old kernel")
    assert "Servers get no user namespaces of their own: old kernel" in caplog.text


@pytest.mark.parametrize("error", [OSError("no room"), comm.PrivsepTimeout("no room")])
def test_a_trial_that_fails_is_no_answer(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_data_root: str) -> str:
        raise error

    found = user_namespaces.read(OVERLAY, "own", IDS, fail)
    assert found.trial == Trial(failure="no room")
    # Such a server does not start, because it has no other ids.
    assert found.of_server(None)
    assert found.impossible == "no room"
    assert "when a server starts: no room" in caplog.text
    caplog.clear()
    assert not user_namespaces.read(OVERLAY, "host", IDS, fail).of_server(None)
    assert caplog.text == ""
    with pytest.raises(exception.InvalidConfiguration, match="no room"):
        user_namespaces.read(OVERLAY, "required", IDS, fail)
