# SPDX-License-Identifier: Apache-2.0
"""Actions of the policy on servers with alarms, through Nova's API.

Because the actions use the API, they are in the server's action log, and an operator can revert
them by the API. The server's metadata records the alarm, so that the end of an alarm reverts only
its own action. A server is throttled by a resize to a smaller flavor, because Nova's API has no
other request for less CPU time; this driver resizes a running server in place.
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
    """The executor of the policy; safe to share between threads.

    :param connection: connection to a cloud with the rights to read, pause and resize the servers
        of all projects
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
        # Ids of servers whose throttling was interrupted, because a request to Nova failed.
        self._broken_off: set[str] = set()

    def take(self, alerts: Iterable[Mapping[str, Any]]) -> None:
        """Execute the policy's actions for alerts of Alertmanager. Idempotent.

        :raises openstack.exceptions.SDKException: Nova refused a request; a retry may succeed
        :raises keystoneauth1.exceptions.ClientException: Nova did not answer; a retry may succeed
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
            _log("refused", labels, f"{self._done.maxlen} actions were executed in the last hour")
            return False
        return True

    def _pause(self, labels: Mapping[str, str]) -> None:
        server = self._find(labels)
        if server is None or server.status == "PAUSED" or not self._may(server, labels):
            return
        # The metadata is set first, because a paused server must always have the reason in it.
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
            _log("unpause", labels, "the alarm is resolved")
        self._cloud.compute.delete_server_metadata(server, [METADATA])

    def _throttle(self, labels: Mapping[str, str], flavors: Mapping[str, str]) -> None:
        server = self._find(labels)
        if server is None:
            return
        before = server.flavor["original_name"]
        metadata = server.metadata or {}
        untouched = server.id in self._broken_off and metadata.get(METADATA_FLAVOR) == before
        if METADATA_THROTTLED in metadata and not untouched:
            self._broken_off.discard(server.id)
            return
        if before not in flavors:
            _log("refused", labels, f"the policy has no smaller flavor for flavor {before!r}")
            return
        if not self._may(server, labels):
            return
        metadata = {METADATA_THROTTLED: labels["alertname"], METADATA_FLAVOR: before}
        self._broken_off.add(server.id)
        self._cloud.compute.set_server_metadata(server, **metadata)
        resized = self._resize(server, flavors[before])
        self._broken_off.discard(server.id)
        if resized:
            self._done.append(self._clock())
            _log("throttle", labels, f"undo it by: openstack server resize to {before}, or revert")
        else:
            self._cloud.compute.delete_server_metadata(server, list(metadata))
            _log("refused", labels, f"Nova did not resize the server to {flavors[before]!r}")

    def _unthrottle(self, labels: Mapping[str, str]) -> None:
        server = self._find(labels)
        metadata = (server.metadata or {}) if server else {}
        if server is None or metadata.get(METADATA_THROTTLED) != labels["alertname"]:
            return
        before = metadata.get(METADATA_FLAVOR, "")
        if server.status == "VERIFY_RESIZE":
            self._cloud.compute.revert_server_resize(server)
            undone = self._settled(server) == before
        else:
            # The resize was confirmed meanwhile, so it can't be reverted.
            undone = server.flavor["original_name"] == before or self._resize(server, before)
        if not undone:
            _log("refused", labels, f"Nova did not resize the server back to {before!r}")
            return
        self._cloud.compute.delete_server_metadata(server, [METADATA_THROTTLED, METADATA_FLAVOR])
        _log("unthrottle", labels, "the alarm is resolved")

    def _resize(self, server: Any, name: str) -> bool:
        """Resize a server to a flavor. Return True if the server has that flavor afterwards."""
        flavor = self._cloud.compute.find_flavor(name)
        if flavor is None:
            return False
        self._cloud.compute.resize_server(server, flavor)
        return self._settled(server) == name

    def _settled(self, server: Any) -> str:
        """Wait for a server's task to end, at most a minute. Return the name of its flavor."""
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
            _log("refused", labels, "the server does not exist")
            return None
        if server.project_id != labels.get("project"):
            _log("refused", labels, f"the server belongs to project {server.project_id}")
            return None
        return server


def make_application(hook: Hook) -> Callable[..., Iterable[bytes]]:
    """Return the WSGI application of Alertmanager's webhook."""

    def application(
        environment: dict[str, Any], start: Callable[[str, list[tuple[str, str]]], object]
    ) -> Iterable[bytes]:
        if environment["REQUEST_METHOD"] != "POST":
            start("405 Method Not Allowed", [("Allow", "POST")])
            return []
        try:
            size = int(environment.get("CONTENT_LENGTH") or 0)
            if not 0 < size <= _LARGEST_BODY:
                raise ValueError(f"its size of {size} bytes is out of range")
            alerts = _parse(environment["wsgi.input"].read(size))
        except ValueError as error:
            LOG.warning("Refused a request that is not a message of Alertmanager: %s", error)
            start("400 Bad Request", [])
            return []
        try:
            hook.take(alerts)
        except cloud.ERRORS as error:
            # Alertmanager repeats a notification that failed.
            LOG.error("Failed to execute an action by Nova's API: %s", error)
            start("503 Service Unavailable", [])
            return []
        start("200 OK", [])
        return []

    return application


def _parse(body: bytes) -> list[dict[str, Any]]:
    try:
        message = json.loads(body)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    alerts = message.get("alerts") if isinstance(message, dict) else None
    if not isinstance(alerts, list) or not all(map(_is_alert, alerts)):
        raise ValueError("it has no list of alerts")
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
    # The line is JSON, because a tenant chose some of the names in it.
    LOG.warning("%s", json.dumps(fields))
