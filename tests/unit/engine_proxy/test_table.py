# SPDX-License-Identifier: Apache-2.0
"""The table of requests; ``test_relay`` compares it with those of the driver's client."""

import json
from typing import Any
from urllib.parse import urlencode

import pytest

from novadocker import naming
from novadocker.engine_proxy import table
from novadocker.engine_proxy.forms import Refused
from novadocker.engine_proxy.policy import Policy
from novadocker.engine_proxy.table import Asked
from tests.unit.engine_proxy.samples import (
    CONTAINER,
    EXECUTION,
    IMAGE,
    NAME,
    OTHER,
    STRANGER,
    UUID,
    Host,
)

POLICY = Policy(registry="registry.example:5000/moves")
V = "/v1.41"
SERVERS = {"label": [naming.SERVER_FILTER]}


def judge(method: str, target: str, body: Any = None) -> str:
    """Return the target that the engine gets."""
    request = table.read(method, target)
    rule, subjects = table.find(request)
    rule.judge(Asked(request, subjects, body, POLICY, Host()))
    return request.target


def filtered(path: str, filters: Any, **query: object) -> str:
    return f"{V}{path}?{urlencode({**query, 'filters': json.dumps(filters)})}"


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/_ping"),
        ("GET", "/version"),
        ("GET", f"{V}/info"),
        ("GET", "/info"),
        ("GET", f"/v1.52/containers/{NAME}/json"),
        ("GET", f"{V}/containers/{NAME}-rescued/json"),
        ("GET", f"{V}/containers/{NAME}-away/json"),
        ("GET", f"{V}/containers/{NAME}-away-rescued/json"),
        ("GET", f"{V}/containers/{CONTAINER}/archive?path=%2Fetc%2Fhosts"),
        ("GET", f"{V}/containers/{CONTAINER}/export"),
        ("POST", f"{V}/containers/{CONTAINER}/rename?name={NAME}-rescued"),
        ("GET", filtered("/containers/json", SERVERS, all=1)),
        ("GET", filtered("/images/json", {"reference": ["novadocker/*"]})),
        ("DELETE", f"{V}/images/novadocker/{UUID}:0123456789ab"),
        ("DELETE", f"{V}/images/{IMAGE}"),
        ("DELETE", f"{V}/images/registry.example:5000/moves/{UUID}:image"),
        ("POST", f"{V}/images/{IMAGE}/tag?repo=novadocker/{UUID}&tag=x"),
        ("POST", f"{V}/images/registry.example:5000/moves/{UUID}/push?tag=image"),
        ("POST", f"{V}/images/create?fromImage=docker.io/library/nginx&tag={IMAGE}"),
        ("POST", f"{V}/images/create?fromSrc=-&repo=novadocker/{UUID}&tag=arriving"),
        ("GET", f"{V}/images/docker.io/library/nginx%40{IMAGE}/json"),
        ("DELETE", f"{V}/volumes/{'a' * 64}"),
        ("POST", f"{V}/exec/{EXECUTION}/resize?h=24&w=80"),
    ],
)
def test_what_passes(method: str, target: str) -> None:
    judge(method, target)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        # other resources
        ("POST", f"{V}/build"),
        ("POST", f"{V}/session"),
        ("POST", "/grpc"),
        ("GET", f"{V}/system/df"),
        ("POST", f"{V}/volumes/create"),
        ("POST", f"{V}/volumes/prune"),
        ("POST", f"{V}/networks/create"),
        ("POST", f"{V}/plugins/pull?remote=x"),
        ("POST", f"{V}/swarm/init"),
        ("POST", f"{V}/commit?container={NAME}"),
        ("POST", f"{V}/containers/prune"),
        ("POST", f"{V}/images/prune"),
        ("GET", f"{V}/images/get?names=x"),
        ("POST", f"{V}/auth"),
        ("GET", f"{V}/containers/{NAME}/export?path=/"),
        ("GET", f"{V}/containers/{NAME}/top"),
        ("POST", f"{V}/containers/{NAME}/stop"),
        ("GET", f"{V}/containers/{NAME}/attach/ws"),
        ("PUT", f"{V}/containers/{NAME}/archive?path=/etc"),
        # older engines took another HostConfig at the start, without a version the newest API
        ("POST", f"/v1.23/containers/{NAME}/start"),
        ("POST", "/v1.40/containers/create?name=x"),
        ("GET", f"/v2.41/containers/{NAME}/json"),
        # containers that are no servers
        ("GET", f"{V}/containers/{STRANGER}/json"),
        ("DELETE", f"{V}/containers/{STRANGER}"),
        ("GET", f"{V}/containers/{STRANGER[:12]}/json"),
        ("GET", f"{V}/containers/database/json"),
        ("POST", f"{V}/containers/create?name=database"),
        ("POST", f"{V}/containers/create"),
        ("POST", f"{V}/containers/create?name={NAME}-rescued"),
        ("POST", f"{V}/containers/{CONTAINER}/rename?name=nova-{OTHER}"),
        ("POST", f"{V}/containers/{CONTAINER}/rename?name=database"),
        ("POST", f"{V}/exec/{'f' * 64}/resize?h=1&w=1"),
        ("GET", f"{V}/containers/json?all=1"),
        ("GET", filtered("/containers/json", {}, all=1)),
        ("GET", filtered("/containers/json", {"label": []}, all=1)),
        ("GET", filtered("/containers/json", {"label": {naming.SERVER_FILTER: False}}, all=1)),
        ("GET", filtered("/events", {"type": ["container"]}, since="1.000000000")),
        ("GET", filtered("/volumes", {"dangling": ["true"]})),
        ("DELETE", f"{V}/volumes/{'b' * 64}"),
        ("DELETE", f"{V}/volumes/database"),
        ("DELETE", f"{V}/volumes/{'a' * 64}?force=1"),
        ("DELETE", f"{V}/containers/{NAME}?link=1"),
        # names of the operator's images
        ("DELETE", f"{V}/images/nginx:latest"),
        ("DELETE", f"{V}/images/sha256:{'2' * 64}"),
        ("DELETE", f"{V}/images/novadocker/{UUID}:x?force=1"),
        ("POST", f"{V}/images/{IMAGE}/tag?repo=nginx&tag=latest"),
        ("POST", f"{V}/images/{IMAGE}/tag?repo=novadockers/x&tag=latest"),
        ("POST", f"{V}/images/create?fromSrc=-&repo=nginx&tag=latest"),
        ("POST", f"{V}/images/create?fromSrc=http://192.0.2.1/&repo=novadocker/x&tag=y"),
        ("POST", f"{V}/images/create?fromImage=nginx&tag=latest"),
        ("POST", f"{V}/images/create?fromImage=nginx"),
        ("POST", f"{V}/images/registry.example:5000/other/x/push?tag=image"),
        ("POST", f"{V}/images/registry.example:5000/moves/push?tag=image"),
        # paths and queries with two meanings
        ("GET", f"{V}/containers/../containers/{NAME}/json"),
        ("GET", f"{V}/images/x/%2e%2e/%2e%2e/containers/json"),
        ("GET", f"{V}/images/x%2fjson%3fall=1"),
        ("GET", f"{V}/images/x%00/json"),
        ("GET", f"{V}//info"),
        ("GET", f"http://docker{V}/info"),
        ("GET", f"{V}/info#x"),
        ("GET", f"{V}/info?"[:-1] + "?x"),
        ("POST", f"{V}/containers/{NAME}/kill?signal=KILL&signal=TERM"),
        ("POST", f"{V}/containers/{NAME}/kill?signal=KILL;x=1"),
        ("GET", f"{V}/containers/{NAME}%0a/json"),
        ("OPTIONS", f"{V}/info"),
        ("get", f"{V}/info"),
        ("GET", f"{V}/images/{'x' * 20_000}/json"),
    ],
)
def test_what_is_refused(method: str, target: str) -> None:
    with pytest.raises(Refused):
        judge(method, target)


def test_the_target_is_written_anew() -> None:
    assert judge("GET", f"{V}/containers/%6eova-{UUID}/json") == f"{V}/containers/{NAME}/json"
    sent = judge("GET", f"{V}/containers/{NAME}/archive?%70ath=/a%26size=1+x")
    assert sent == f"{V}/containers/{NAME}/archive?path=%2Fa%26size%3D1+x"


def test_without_a_registry_no_image_is_sent_to_one() -> None:
    assert not Policy().may_push("/x")
    assert not Policy().may_name("nginx")
