# SPDX-License-Identifier: Apache-2.0
"""Does to a server what the policy says for an alarm, through Nova's API.

So it stands in the instance's action log, and an operator can undo it by the same API. The server's
metadata says that an alarm did it: by that the end of an alarm undoes its own work alone. Nova's
only verb for less CPU time is the resize to a smaller flavor, which this driver does while the
server runs.
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from openstack import exceptions
from openstack.connection import Connection

from novadocker.actions import cloud, policy
from novadocker.actions.policy import Policy

LOG = logging.getLogger(__name__)

METADATA = "novadocker_paused_by"
METADATA_THROTTLED = "novadocker_throttled_by"
METADATA_FLAVOR = "novadocker_throttled_from"

_HOUR_SECONDS = 3600.0
_LARGEST_BODY = 4 << 20
_RESIZE_SECONDS = 60.0
_POLL_SECONDS = 1.0


class Hook:
    """Takes alarms; safe to share between threads.

    :param connection: to a cloud, with the rights to see and pause the servers of all projects
    """

    def __init__(
        self,
        connection: Connection,
        wanted: Policy,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cloud = connection
        self._policy = wanted
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._done: deque[float] = deque(maxlen=wanted.most_per_hour)
        # servers that were being throttled when Nova failed
        self._broken_off: set[str] = set()

    def take(self, alerts: Iterable[Mapping[str, Any]]) -> None:
        """Do what the policy says for some alerts of Alertmanager; again does no more.

        :raises openstack.exceptions.SDKException: Nova did not do it; another try may help
        :raises keystoneauth1.exceptions.ClientException: the same, as it is away
        """
        with self._lock:
            for alert in alerts:
                labels = alert["labels"]
                rule = self._policy.find(labels)
                if rule is None:
                    continue
                throttles = rule.action == policy.THROTTLE
                if alert["status"] == "firing":
                    self._throttle(labels, rule.flavors) if throttles else self._pause(labels)
                elif rule.undo:
                    self._unthrottle(labels) if throttles else self._undo(labels)

    def _may(self, server: Any, labels: Mapping[str, str]) -> bool:
        if server.status != "ACTIVE":
            _log("refused", labels, f"the server is {server.status}")
            return False
        if len(self._done) == self._done.maxlen and self._clock() - self._done[0] < _HOUR_SECONDS:
            _log("refused", labels, f"{self._done.maxlen} actions were taken in this hour")
            return False
        return True

    def _pause(self, labels: Mapping[str, str]) -> None:
        server = self._find(labels)
        if server is None or server.status == "PAUSED" or not self._may(server, labels):
            return
        # first: a server must not be paused without a word of why
        self._cloud.compute.set_server_metadata(server, **{METADATA: labels["alertname"]})
        self._cloud.compute.pause_server(server)
        self._done.append(self._clock())
        _log("pause", labels, "undo it by: openstack server unpause")

    def _undo(self, labels: Mapping[str, str]) -> None:
        server = self._find(labels)
        if server is None or (server.metadata or {}).get(METADATA) != labels["alertname"]:
            return
        if server.status == "PAUSED":
            self._cloud.compute.unpause_server(server)
            _log("unpause", labels, "the alarm is over")
        self._cloud.compute.delete_server_metadata(server, [METADATA])

    def _throttle(self, labels: Mapping[str, str], flavors: Mapping[str, str]) -> None:
        server = self._find(labels)
        if server is None:
            return
        before = server.flavor["original_name"]
        said = server.metadata or {}
        untouched = server.id in self._broken_off and said.get(METADATA_FLAVOR) == before
        if METADATA_THROTTLED in said and not untouched:
            self._broken_off.discard(server.id)
            return
        if before not in flavors:
            _log("refused", labels, f"the policy has no smaller flavor than {before!r}")
            return
        if not self._may(server, labels):
            return
        said = {METADATA_THROTTLED: labels["alertname"], METADATA_FLAVOR: before}
        self._broken_off.add(server.id)
        self._cloud.compute.set_server_metadata(server, **said)
        resized = self._resize(server, flavors[before])
        self._broken_off.discard(server.id)
        if resized:
            self._done.append(self._clock())
            _log("throttle", labels, f"undo it by: openstack server resize to {before}, or revert")
        else:
            self._cloud.compute.delete_server_metadata(server, list(said))
            _log("refused", labels, f"Nova did not resize it to {flavors[before]!r}")

    def _unthrottle(self, labels: Mapping[str, str]) -> None:
        server = self._find(labels)
        said = (server.metadata or {}) if server else {}
        if server is None or said.get(METADATA_THROTTLED) != labels["alertname"]:
            return
        before = said.get(METADATA_FLAVOR, "")
        if server.status == "VERIFY_RESIZE":
            self._cloud.compute.revert_server_resize(server)
            undone = self._settled(server) == before
        else:
            # confirmed by now
            undone = server.flavor["original_name"] == before or self._resize(server, before)
        if not undone:
            _log("refused", labels, f"Nova did not give it {before!r} back")
            return
        self._cloud.compute.delete_server_metadata(server, [METADATA_THROTTLED, METADATA_FLAVOR])
        _log("unthrottle", labels, "the alarm is over")

    def _resize(self, server: Any, name: str) -> bool:
        """Give a server another flavor; tell whether it has it in the end."""
        flavor = self._cloud.compute.find_flavor(name)
        if flavor is None:
            return False
        self._cloud.compute.resize_server(server, flavor)
        return self._settled(server) == name

    def _settled(self, server: Any) -> str:
        """Return the name of a server's flavor once nothing is done to it, or after a minute."""
        deadline = self._clock() + _RESIZE_SECONDS
        while True:
            now = self._cloud.compute.get_server(server.id)
            if now.task_state is None or self._clock() > deadline:
                return str(now.flavor["original_name"])
            self._sleep(_POLL_SECONDS)

    def _find(self, labels: Mapping[str, str]) -> Any:
        try:
            server = self._cloud.compute.get_server(labels["uuid"])
        except exceptions.NotFoundException:
            _log("refused", labels, "there is no such server")
            return None
        if server.project_id != labels.get("project"):
            _log("refused", labels, f"the server is of project {server.project_id}")
            return None
        return server


def make_application(hook: Hook) -> Callable[..., Iterable[bytes]]:
    """Return the WSGI application that takes Alertmanager's webhook."""

    def application(
        environment: dict[str, Any], start: Callable[[str, list[tuple[str, str]]], object]
    ) -> Iterable[bytes]:
        if environment["REQUEST_METHOD"] != "POST":
            start("405 Method Not Allowed", [("Allow", "POST")])
            return []
        try:
            size = int(environment.get("CONTENT_LENGTH") or 0)
            if not 0 < size <= _LARGEST_BODY:
                raise ValueError(f"{size} bytes")
            alerts = _parse(environment["wsgi.input"].read(size))
        except ValueError as error:
            LOG.warning("What was sent is no message of Alertmanager's: %s", error)
            start("400 Bad Request", [])
            return []
        try:
            hook.take(alerts)
        except cloud.ERRORS as error:
            # Alertmanager sends it again
            LOG.error("Nova did not do it: %s", error)
            start("503 Service Unavailable", [])
            return []
        start("200 OK", [])
        return []

    return application


def _parse(body: bytes) -> list[dict[str, Any]]:
    message = json.loads(body)
    alerts = message.get("alerts") if isinstance(message, dict) else None
    if not isinstance(alerts, list) or not all(map(_is_alert, alerts)):
        raise ValueError("it has no alerts")
    return alerts


def _is_alert(alert: Any) -> bool:
    if not isinstance(alert, dict) or alert.get("status") not in ("firing", "resolved"):
        return False
    labels = alert.get("labels")
    return isinstance(labels, dict) and all(isinstance(value, str) for value in labels.values())


def _log(action: str, labels: Mapping[str, str], reason: str) -> None:
    fields = {
        "action": action,
        "alarm": labels["alertname"],
        "uuid": labels["uuid"],
        "project": labels.get("project", ""),
        "reason": reason,
    }
    # a tenant chose some of the words
    LOG.warning("%s", json.dumps(fields))
