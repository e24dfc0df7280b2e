# SPDX-License-Identifier: Apache-2.0
"""For any response of an engine, the driver returns a valid value or raises one clear error."""

import copy
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novadocker.virt.docker.engine import responses
from tests import fuzz

ID = "ab" * 32
LABELS = {"org.openstack.nova.schema": "1"}
ROW = {"Id": ID, "Names": ["/nova-1"], "State": "running", "Labels": LABELS}
INSPECTED = {
    "Id": ID,
    "Name": "/nova-1",
    "Image": f"sha256:{ID}",
    "State": {"Status": "running", "Pid": 4711, "StartedAt": "2026-01-02T03:04:05.678901234Z"},
    "Config": {"Labels": LABELS, "StopSignal": "SIGINT"},
    "GraphDriver": {
        "Name": "overlay2",
        "Data": {"UpperDir": "/a/diff", "LowerDir": "/b/diff:/c/diff", "WorkDir": "/a/work"},
    },
    "Mounts": [{"Type": "volume", "Destination": "/data", "Source": "/v/_data"}],
}
EVENT = {
    "Action": "die",
    "timeNano": 1_700_000_000_123_456_789,
    "Actor": {"Attributes": {"name": "nova-1", "exitCode": "137"}},
}
INFO = {
    "ServerVersion": "20.10.24",
    "NCPU": 2,
    "MemTotal": 1 << 30,
    "Architecture": "x86_64",
    "DockerRootDir": "/var/lib/docker",
    "Driver": "overlay2",
    "CgroupVersion": "2",
    "LiveRestoreEnabled": True,
    "Runtimes": {"novadocker": {"path": "/usr/bin/novadocker-runtime"}},
    "DriverStatus": [["Backing Filesystem", "extfs"]],
    "Warnings": ["WARNING: no swap limit support"],
    "SecurityOptions": ["name=seccomp,profile=default", "name=userns"],
}

CONTAINERD = INFO | {"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}

CASES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "container": (ROW, responses.container),
    "detail": (INSPECTED, responses.container_detail),
    "storage": (INSPECTED, responses.storage),
    "event": (EVENT, lambda found: responses.event(json.dumps(found).encode())),
    "info": (INFO, lambda found: responses.engine_info(found, "1.41")),
}

JUNK: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)


def places(found: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each value in a response, beginning with the response itself."""
    yield way
    keys: Iterable[Any] = ()
    if isinstance(found, dict):
        keys = found
    elif isinstance(found, list):
        keys = range(len(found))
    for key in keys:
        yield from places(found[key], (*way, key))


def changed(answer: Any, way: tuple[Any, ...], value: Any, gone: bool) -> Any:
    if not way:
        return value
    result = copy.deepcopy(answer)
    holder = result
    for key in way[:-1]:
        holder = holder[key]
    if gone:
        del holder[way[-1]]
    else:
        holder[way[-1]] = value
    return result


@pytest.mark.parametrize("name", CASES)
@fuzz.examples(100)
@given(data=st.data())
def test_any_answer(name: str, data: st.DataObject) -> None:
    answer, read = CASES[name]
    right = dataclasses.asdict(read(answer))
    way = data.draw(st.sampled_from(list(places(answer))))
    given = changed(answer, way, data.draw(JUNK), data.draw(st.booleans()))
    try:
        with fuzz.bounds():
            found = read(given)
    except responses.MalformedResponse:
        return
    for field, value in dataclasses.asdict(found).items():
        assert type(value) is type(right[field]) or (field, value) == ("started_at", None)
        if isinstance(value, dict):
            assert all(isinstance(each, str) for pair in value.items() for each in pair)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Exited (129) 5 minutes ago", 129),
        ("Exited (0) Less than a second ago", 0),
        ("Up 2 minutes", None),
        ("Created", None),
        (None, None),
        (5, None),
    ],
)
def test_the_exit_status_in_the_list(text: object, code: int | None) -> None:
    assert responses.container({**ROW, "Status": text}).exit_code == code


def test_the_exit_status_of_the_last_run() -> None:
    running = responses.container_detail(INSPECTED)
    assert (running.exit_code, running.finished_at) == (None, None)
    ended = {
        **INSPECTED,
        "State": {
            "Status": "exited",
            "Pid": 0,
            "StartedAt": "2026-01-02T03:04:05.678901234Z",
            "FinishedAt": "2026-01-02T03:04:06.678901234Z",
            "ExitCode": 129,
        },
    }
    found = responses.container_detail(ended)
    assert found.exit_code == 129
    assert str(found.finished_at) == "2026-01-02 03:04:06.678901+00:00"


@pytest.mark.parametrize("name", CASES)
def test_further_fields_are_no_matter(name: str) -> None:
    answer, read = CASES[name]
    more = {"Novelty": {"of": ["a", "later", "engine"]}}
    assert read({**answer, **more}) == read(answer)


@pytest.mark.parametrize(
    ("options", "seccomp", "user_namespaces"),
    [
        (None, False, False),
        ([], False, False),
        (["name=apparmor", "name=seccomp,profile=default"], True, False),
        (["name=seccomp,profile=builtin", "name=userns"], True, True),
        (["name=seccomp"], True, False),
        (["name=userns", "name=cgroupns"], False, True),
    ],
)
def test_security_options(options: list[str] | None, seccomp: bool, user_namespaces: bool) -> None:
    found = responses.engine_info({**INFO, "SecurityOptions": options}, "1.41")
    assert (found.seccomp, found.user_namespaces) == (seccomp, user_namespaces)


@pytest.mark.parametrize("line", [b"", b"{", b"5", b"[]", b"\xff"])
def test_what_is_no_event(line: bytes) -> None:
    with pytest.raises(responses.MalformedResponse):
        responses.event(line)


@pytest.mark.parametrize(("found", "expected"), [(INFO, False), (CONTAINERD, True)])
def test_containerds_image_store(found: dict[str, Any], expected: bool) -> None:
    assert responses.engine_info(found, "1.44").containerd_store is expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"GraphDriver": {"Name": "overlay2", "Data": {"UpperDir": "/a"}}}, "overlay2"),
        ({"GraphDriver": {"Name": "vfs", "Data": None}}, "vfs"),
        # Engine 26 to 28
        ({"GraphDriver": {"Name": "overlayfs", "Data": None}}, "containerd's overlayfs"),
        # Engine 29, API 1.52 (daemon/inspect.go)
        (
            {"Storage": {"RootFS": {"Snapshot": {"Name": "overlayfs"}}}},
            "containerd's overlayfs",
        ),
        # Engine 29 with a storage driver of its own
        ({"GraphDriver": {"Name": "overlay2", "Data": {}}, "Storage": None}, "overlay2"),
        ({}, "unknown"),
    ],
)
def test_the_storage_driver_of_a_container(answer: dict[str, Any], expected: str) -> None:
    assert responses.storage(answer).driver == expected


def test_the_address_of_containerd() -> None:
    given = {"Containerd": {"Address": "/run/containerd/containerd.sock", "Namespaces": {}}}
    found = responses.engine_info({**INFO, **given}, "1.51").containerd_address
    assert found == "/run/containerd/containerd.sock"
    assert responses.engine_info(INFO, "1.41").containerd_address == ""


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"GraphDriver": {"Name": "overlay2"}, "Size": 7}, 7),
        # containerd's image store before Engine 28; what the registry has counts in the size
        ({"GraphDriver": {"Name": "overlayfs"}, "Size": 7}, 0),
        (
            {
                "Size": 7,
                "Manifests": [
                    {"Kind": "image", "ImageData": {"Size": {"Unpacked": 4}}},
                    {"Kind": "attestation", "AttestationData": {"For": "sha256:1"}},
                ],
            },
            4,
        ),
    ],
)
def test_the_unpacked_size_of_an_image(found: dict[str, Any], expected: int) -> None:
    assert responses.unpacked_bytes(found) == expected


@pytest.mark.parametrize(
    "found",
    [
        {"GraphDriver": {"Name": "overlay2"}},
        {"GraphDriver": {"Name": "overlay2"}, "Size": "7"},
        {"Manifests": [{"ImageData": {}}, {"ImageData": {"Size": 4}}]},
    ],
)
def test_a_malformed_size_of_an_image(found: dict[str, Any]) -> None:
    with pytest.raises(responses.MalformedResponse):
        responses.unpacked_bytes(found)
