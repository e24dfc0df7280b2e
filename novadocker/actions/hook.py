# SPDX-License-Identifier: Apache-2.0
"""Does to a server what the policy says for an alarm, through Nova's API.

So it stands in the instance's action log, and an operator can undo it by the same API. The server's
metadata says that an alarm did it: by that the end of an alarm undoes its own work alone.
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

from novadocker.actions.policy import Policy

LOG = logging.getLogger(__name__)

METADATA = "novadocker_paused_by"

_HOUR_SECONDS = 3600.0
_LARGEST_BODY = 4 << 20


class Hook:
    """Takes alarms; safe to share between threads.

    :param cloud: with the rights to see and pause the servers of all projects
    """

    def __init__(
        self, cloud: Connection, policy: Policy, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cloud = cloud
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._done: deque[float] = deque(maxlen=policy.most_per_hour)

    def take(self, alerts: Iterable[Mapping[str, Any]]) -> None:
        """Do what the policy says for some alerts of Alertmanager; again does no more.

        :raises openstack.exceptions.SDKException: Nova did not do it; another try may help
        """
        with self._lock:
            for alert in alerts:
                labels = alert["labels"]
                rule = self._policy.find(labels)
                if rule and alert["status"] == "firing":
                    self._pause(labels)
                elif rule and rule.undo:
                    self._undo(labels)

    def _pause(self, labels: Mapping[str, str]) -> None:
        server = self._find(labels)
        if server is None or server.status == "PAUSED":
            return
        if server.status != "ACTIVE":
            _log("refused", labels, f"the server is {server.status}")
            return
        now = self._clock()
        if len(self._done) == self._done.maxlen and now - self._done[0] < _HOUR_SECONDS:
            _log("refused", labels, f"{self._done.maxlen} servers were paused in this hour")
            return
        # first: a server must not be paused without a word of why
        self._cloud.compute.set_server_metadata(server, **{METADATA: labels["alertname"]})
        self._cloud.compute.pause_server(server)
        self._done.append(now)
        _log("pause", labels, "undo it by: openstack server unpause")

    def _undo(self, labels: Mapping[str, str]) -> None:
        server = self._find(labels)
        if server is None or (server.metadata or {}).get(METADATA) != labels["alertname"]:
            return
        if server.status == "PAUSED":
            self._cloud.compute.unpause_server(server)
            _log("unpause", labels, "the alarm is over")
        self._cloud.compute.delete_server_metadata(server, [METADATA])

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
        except exceptions.SDKException as error:
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
