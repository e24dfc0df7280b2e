# SPDX-License-Identifier: Apache-2.0
"""The requests that the driver makes, as a table; every other request is refused; pure."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from novadocker import naming
from novadocker.engine_proxy import bodies, forms
from novadocker.engine_proxy.forms import Refused
from novadocker.engine_proxy.policy import NAME, Host, Policy

_LONGEST_TARGET = 16 << 10
# The engine's API since release 20.10, the oldest supported one.
_VERSION = re.compile(r"/v1\.(?:4[1-9]|[5-9][0-9])")
# The characters of every path below; none of them has another meaning for the engine's router.
_PLAIN = re.compile(r"/[A-Za-z0-9_.:/@-]*")
_TRUE, _FALSE = "1|True", "0|False"
_NUMBER = "-?[0-9]{1,10}"
_TAG = r"\w[\w.-]{0,127}"
_COMPONENT = r"[A-Za-z0-9]+(?:[._-]+[A-Za-z0-9]+)*"
_REPOSITORY = rf"{_COMPONENT}(?::[0-9]{{1,5}})?(?:/{_COMPONENT})*"
_IMAGE = rf"{naming.DIGEST.pattern}|{_REPOSITORY}(?::{_TAG})?(?:@{naming.DIGEST.pattern})?"
_PATTERNS = {
    "container": rf"{NAME.pattern.replace('?P<uuid>', '?:')}|{naming.CONTAINER_ID.pattern}",
    "execution": naming.CONTAINER_ID.pattern,
    "image": _IMAGE,
    "volume": naming.CONTAINER_ID.pattern,
}


class Body(Enum):
    """The kinds of bodies of requests.

    A body that streams is not judged, except that of an image.
    """

    EMPTY = 0
    JSON = 1
    STREAM = 2
    IMAGE = 3


@dataclass(frozen=True)
class Request:
    """A request, decoded.

    :ivar prefix: the version in the path, such as ``/v1.41``; may be empty
    :ivar path: the path without the version
    """

    method: str
    prefix: str
    path: str
    query: Mapping[str, str]

    @property
    def target(self) -> str:
        """The target of the request in HTTP, encoded anew."""
        path = f"{self.prefix}{quote(self.path, safe='/:')}"
        return f"{path}?{urlencode(self.query)}" if self.query else path


Subjects = Mapping[str, str]


@dataclass(frozen=True)
class Asked:
    """A request, and what its judgement depends on.

    :ivar subjects: the parts of the path that a rule names
    :ivar body: value of the JSON body; None without one
    """

    request: Request
    subjects: Subjects
    body: Any
    policy: Policy
    host: Host


def _agree(_asked: Asked) -> None:
    """Accept a request, because its path and its query say everything."""


@dataclass(frozen=True)
class Rule:
    """A kind of request.

    :ivar path: with the names of subjects in braces, which are keys of ``_PATTERNS``
    :ivar query: patterns of the parameters that the request must have
    :ivar optional: patterns of those that it may have
    :ivar judge: raises ``Refused`` for requests that the driver does not make
    :ivar upgrades: True if the connection becomes a terminal's
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    body: Body = Body.EMPTY
    judge: Callable[[Asked], None] = _agree
    upgrades: bool = False

    def subjects(self, request: Request) -> Subjects | None:
        """Return the subjects in a request's path; None if the rule is not about the request."""
        wanted = re.sub(r"{(\w+)}", lambda name: f"(?P<{name[1]}>{_PATTERNS[name[1]]})", self.path)
        found = re.fullmatch(wanted, request.path)
        known = {**self.query, **self.optional}
        if (
            found is None
            or request.method != self.method
            or not self.query.keys() <= request.query.keys() <= known.keys()
            or not all(re.fullmatch(known[k], v, re.DOTALL) for k, v in request.query.items())
        ):
            return None
        return found.groupdict()


def _owned(asked: Asked) -> None:
    asked.host.server(asked.subjects["container"])


def _renamed(asked: Asked) -> None:
    name = NAME.fullmatch(asked.request.query["name"])
    if not name or name["uuid"] != asked.host.server(asked.subjects["container"]):
        raise Refused("the name is of another instance")


def _created(asked: Asked) -> None:
    bodies.container(
        asked.body, asked.request.query["name"].removeprefix("nova-"), asked.policy, asked.host
    )


def _changed(asked: Asked) -> None:
    bodies.update(asked.body)
    asked.host.server(asked.subjects["container"])


def _executes(asked: Asked) -> None:
    bodies.execution(asked.body)
    asked.host.server(asked.subjects["container"])


def _in_server(asked: Asked) -> None:
    asked.host.server(asked.host.container_of(asked.subjects["execution"]))


def _starts(asked: Asked) -> None:
    bodies.terminal(asked.body)
    _in_server(asked)


def _listed(asked: Asked) -> None:
    wanted = forms.parse(asked.request.query["filters"].encode())
    if not isinstance(wanted, dict) or wanted.get("label") != [naming.SERVER_FILTER]:
        raise Refused("the filter does not select the containers of servers")
    _strings(wanted)


def _overlays(asked: Asked) -> None:
    wanted = forms.parse(asked.request.query["filters"].encode())
    if not isinstance(wanted, dict) or wanted.get("label") != [naming.LABEL_OVERLAY]:
        raise Refused("the filter does not select the overlays of servers")
    _strings(wanted)


def _strings(wanted: Mapping[str, Any]) -> None:
    for values in wanted.values():
        forms.array(forms.text(r"[\w.=/*:-]+"))(values)


def _overlay(asked: Asked) -> None:
    if naming.LABEL_OVERLAY not in asked.host.volume_labels(asked.subjects["volume"]):
        raise Refused("the volume is not an overlay of a server")


def _named(asked: Asked) -> None:
    if not asked.policy.may_name(asked.request.query["repo"]):
        raise Refused("the driver gives images no names in this repository")


def _pushed(asked: Asked) -> None:
    if not asked.policy.may_push(asked.subjects["image"]):
        raise Refused("the driver sends no images of this repository to a registry")


def _removed(asked: Asked) -> None:
    if asked.policy.may_name(asked.subjects["image"]):
        return
    if not naming.DIGEST.search(asked.subjects["image"]):
        raise Refused("the driver gives images no such names")
    for name in asked.host.image_names(asked.subjects["image"]):
        if not asked.policy.may_name(name):
            raise Refused("the image has a name that the driver did not give")


_PATH = {"path": r"/[^\0]{0,4095}"}
_TERMINAL = {"stream": "1", "stdin": "1", "stdout": "1", "stderr": "1", "detachKeys": "[a-z@^,-]+"}
_SIZE = {"h": _NUMBER, "w": _NUMBER}
_FILTERS = {"filters": r"\{.{0,4096}\}"}
_PULL = {"fromImage": _REPOSITORY, "tag": naming.DIGEST.pattern}
_IMPORT = {"fromSrc": "-", "repo": _REPOSITORY, "tag": _TAG}
_SERVER = "/containers/{container}"

RULES = (
    Rule("GET", "/_ping"),
    Rule("GET", "/version"),
    Rule("GET", "/info"),
    Rule("GET", "/events", {"since": r"[0-9]{1,12}\.[0-9]{9}", **_FILTERS}, judge=_listed),
    # containers
    Rule(
        "GET",
        "/containers/json",
        {"all": _TRUE, **_FILTERS},
        {"limit": _NUMBER, "size": _FALSE, "trunc_cmd": _FALSE},
        judge=_listed,
    ),
    Rule(
        "POST",
        "/containers/create",
        {"name": rf"nova-{naming.UUID.pattern}"},
        body=Body.JSON,
        judge=_created,
    ),
    Rule("GET", f"{_SERVER}/json", judge=_owned),
    Rule("POST", f"{_SERVER}/start", judge=_owned),
    Rule("POST", f"{_SERVER}/update", body=Body.JSON, judge=_changed),
    Rule("POST", f"{_SERVER}/kill", {"signal": "[A-Z0-9+-]{1,16}"}, judge=_owned),
    Rule("POST", f"{_SERVER}/wait", judge=_owned),
    Rule("POST", f"{_SERVER}/pause", judge=_owned),
    Rule("POST", f"{_SERVER}/unpause", judge=_owned),
    Rule("POST", f"{_SERVER}/rename", {"name": NAME.pattern}, judge=_renamed),
    Rule(
        "DELETE",
        _SERVER,
        optional={"v": f"{_TRUE}|{_FALSE}", "force": f"{_TRUE}|{_FALSE}", "link": _FALSE},
        judge=_owned,
    ),
    Rule(
        "GET",
        f"{_SERVER}/logs",
        {"stdout": _TRUE, "stderr": _TRUE, "tail": _NUMBER},
        judge=_owned,
    ),
    Rule("GET", f"{_SERVER}/stats", {"stream": _FALSE}, {"one-shot": _TRUE}, judge=_owned),
    Rule("HEAD", f"{_SERVER}/archive", _PATH, judge=_owned),
    Rule("GET", f"{_SERVER}/archive", _PATH, judge=_owned),
    Rule("GET", f"{_SERVER}/export", judge=_owned),
    Rule("PUT", f"{_SERVER}/archive", {"path": "/"}, body=Body.STREAM, judge=_owned),
    # terminals
    Rule("POST", f"{_SERVER}/attach", _TERMINAL, judge=_owned, upgrades=True),
    Rule("POST", f"{_SERVER}/resize", _SIZE, judge=_owned),
    Rule("POST", f"{_SERVER}/exec", body=Body.JSON, judge=_executes),
    Rule("POST", "/exec/{execution}/start", body=Body.JSON, judge=_starts, upgrades=True),
    Rule("POST", "/exec/{execution}/resize", _SIZE, judge=_in_server),
    Rule("GET", "/exec/{execution}/json", judge=_in_server),
    # volumes
    Rule("GET", "/volumes", _FILTERS, judge=_overlays),
    Rule("DELETE", "/volumes/{volume}", judge=_overlay),
    # images
    Rule("GET", "/images/json", _FILTERS, {"only_ids": _FALSE, "all": _FALSE}),
    Rule("GET", "/images/{image}/json", optional={"manifests": _TRUE}),
    Rule("GET", "/images/{image}/history"),
    Rule("GET", "/images/{image}/get"),
    Rule("GET", "/distribution/{image}/json"),
    Rule("POST", "/images/create", _PULL),
    Rule("POST", "/images/create", _IMPORT, body=Body.STREAM, judge=_named),
    Rule("POST", "/images/load", optional={"quiet": _TRUE}, body=Body.IMAGE),
    Rule(
        "POST",
        "/images/{image}/tag",
        {"repo": _REPOSITORY, "tag": _TAG},
        {"force": _FALSE},
        judge=_named,
    ),
    Rule("POST", "/images/{image}/push", {"tag": _TAG}, judge=_pushed),
    Rule(
        "DELETE", "/images/{image}", optional={"force": _FALSE, "noprune": _FALSE}, judge=_removed
    ),
)


def read(method: str, target: str) -> Request:
    """Return a request, given its method and its target in HTTP.

    :raises Refused: the driver sends no target of this form
    """
    path, _, query = target.partition("?")
    path = unquote(path)
    if len(target) > _LONGEST_TARGET or not _PLAIN.fullmatch(path):
        raise Refused("the path has characters of no path of the driver's")
    version = _VERSION.match(path)
    prefix = version[0] if version else ""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as error:
        raise Refused(f"the query is malformed: {error}") from error
    if len(dict(pairs)) < len(pairs):
        raise Refused("the query has a parameter twice")
    return Request(method, prefix, path.removeprefix(prefix), dict(pairs))


def find(request: Request) -> tuple[Rule, Subjects]:
    """Return the rule for a request and the subjects in its path.

    :raises Refused: the driver makes no such request
    """
    for rule in RULES:
        subjects = rule.subjects(request)
        if subjects is not None:
            return rule, subjects
    raise Refused("the driver makes no such request")
