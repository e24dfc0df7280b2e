# SPDX-License-Identifier: Apache-2.0
"""The proxy's connections to the engine, and its questions about the engine's objects."""

import json
import socket
import threading
from collections.abc import Mapping
from typing import Any

import h11

from novadocker import naming
from novadocker.engine_proxy.ends import End, Gone, await_either
from novadocker.engine_proxy.forms import Refused
from novadocker.engine_proxy.policy import NAME, Answered

_CONNECT_SECONDS = 60.0
_LARGEST_ANSWER = 16 << 20
_MOST_KNOWN = 10_000


class Known:
    """The instances of containers by the containers' ids; may be shared between threads.

    The engine never gives an id to another container.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._instances: dict[str, str] = {}

    def instance_of(self, container_id: str) -> str | None:
        """Return the UUID of a container's instance; None if it is not known."""
        with self._lock:
            return self._instances.get(container_id)

    def note(self, container_id: str, instance_uuid: str) -> None:
        """Note the instance of a container."""
        with self._lock:
            if len(self._instances) >= _MOST_KNOWN:
                self._instances.clear()
            self._instances[container_id] = instance_uuid


class Engine:
    """A connection to the engine, which serves one request at a time.

    :param path: of the engine's socket
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._end: End | None = None

    def connect(self) -> End:
        """Return the connection, idle; open one if there is none.

        :raises OSError: the engine does not listen
        """
        if self._end is not None and self._end.is_readable():
            # The engine closed it, because nothing else arrives between two answers.
            self.close()
        if self._end is None:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.settimeout(_CONNECT_SECONDS)
                connection.connect(self._path)
            except OSError:
                connection.close()
                raise
            self._end = End(connection, h11.CLIENT)
        return self._end

    def release(self) -> None:
        """Keep the connection for the next request, or close it if the engine ends it."""
        if self._end is None:
            return
        states = self._end.http.states
        if states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
            self._end.http.start_next_cycle()
        else:
            self.close()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._end is not None:
            self._end.close()
            self._end = None


class EngineHost:
    """The engine's answers about its objects; see ``policy.Host``.

    :param client: chooses how long it waits for an answer, and closes its connection after that
    :param prefix: the version of the API, as in a request's path
    """

    def __init__(self, engine: Engine, client: End, prefix: str, known: Known) -> None:
        self._engine = engine
        self._client = client
        self._prefix = prefix
        self._known = known

    def user_namespaces(self) -> bool:
        """Return True if containers have their own users (``userns-remap``)."""
        options = self._ask("/info").get("SecurityOptions") or ()
        return any(option.split(",")[0] == "name=userns" for option in options)

    def server(self, container: str) -> str:
        """Return the UUID of the instance that a container belongs to.

        :param container: name or id
        :raises Refused: it belongs to no instance
        """
        known = self._known.instance_of(container)
        if known is not None:
            return known
        found = self._ask(f"/containers/{container}/json")
        labels = found["Config"]["Labels"] or {}
        name = NAME.fullmatch(found["Name"].removeprefix("/"))
        if (
            name is None
            or labels.get(naming.LABEL_SCHEMA) != naming.SCHEMA
            or labels.get(naming.LABEL_UUID) != name["uuid"]
        ):
            raise Refused("the container belongs to no server")
        self._known.note(found["Id"], name["uuid"])
        return name["uuid"]

    def container_of(self, execution: str) -> str:
        """Return the id of the container in which an exec runs."""
        return str(self._ask(f"/exec/{execution}/json")["ContainerID"])

    def directories(self, container: str) -> tuple[list[str], set[str]]:
        """Return the directories of a container's files; see ``policy.Host``."""
        found = self._ask(f"/containers/{container}/json")
        # With containerd's image store, Engine 29 leaves the driver out.
        storage = found.get("GraphDriver") or {}
        data = storage.get("Data") or {}
        volumes = {mount["Source"] for mount in found["Mounts"] if mount["Type"] == "volume"}
        if storage.get("Name") != "overlay2":
            return [], volumes
        return [data["UpperDir"], data["WorkDir"], *data["LowerDir"].split(":")], volumes

    def image_names(self, image: str) -> list[str]:
        """Return the names of an image."""
        return list(self._ask(f"/images/{image.replace('@', '%40')}/json").get("RepoTags") or ())

    def volume_labels(self, volume: str) -> Mapping[str, str]:
        """Return the labels of a volume."""
        return dict(self._ask(f"/volumes/{volume}").get("Labels") or {})

    def _ask(self, path: str) -> Any:
        """Return the engine's answer.

        :raises Answered: the engine answers with an error
        :raises Gone: the engine or the client has closed its connection
        """
        end = self._engine.connect()
        end.send(
            h11.Request(method="GET", target=f"{self._prefix}{path}", headers=[("Host", "docker")])
        )
        end.send(h11.EndOfMessage())
        status, content = 0, b""
        while True:
            event = end.http.next_event()
            if event is h11.NEED_DATA:
                await_either(end, self._client, both=False)
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                content += event.data
                if len(content) > _LARGEST_ANSWER:
                    raise Gone("the engine's answer is too long")
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.ConnectionClosed):
                raise Gone("the engine has closed its connection")
        self._engine.release()
        if status != 200:
            raise Answered(status, content)
        return json.loads(content)
