# SPDX-License-Identifier: Apache-2.0
"""The Docker Engine over its REST API: only this and ``connection`` import the docker SDK.

One method is one request. Answers become the dataclasses of ``model``, failures the errors of
``novadocker.exception``; nothing here knows Nova's objects.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import requests
from docker import auth, errors

from novadocker import exception, naming
from novadocker.virt.docker.engine import requests as engine_requests
from novadocker.virt.docker.engine import responses
from novadocker.virt.docker.engine.claim import EngineClaim
from novadocker.virt.docker.engine.connection import (
    Connection,
    Tls,
    is_read_timeout,
    read_credentials,
)
from novadocker.virt.docker.model import (
    Container,
    ContainerDetail,
    ContainerEvent,
    ContainerSpec,
    EngineImage,
    EngineInfo,
    Limits,
    Storage,
    Terminal,
    Usage,
)

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

# the engine splits lines after 16 KiB
_LOG_TAIL_LINES = 2000
_CHUNK_BYTES = 65536

# The SDK's default (ctrl-p ctrl-q) takes a key from every shell; nobody types this, and none at all
# is not to be had.
_DETACH_KEYS = "ctrl-@,ctrl-^,ctrl-@,ctrl-^,ctrl-@"


class Engine(Connection):
    """What the engine at ``url`` does; safe to share between threads.

    Every request ends within ``timeout`` seconds without an answer. Every method raises
    ``EngineUnavailable`` when the engine does not answer and ``EngineError`` when it refuses.
    """

    def __init__(self, url: str, timeout: int, load_timeout: int, tls: Tls | None = None) -> None:
        super().__init__(url, timeout, load_timeout, tls)
        self._claim = EngineClaim()

    # -- the engine ---------------------------------------------------------------------------

    def info(self) -> EngineInfo:
        """Return the facts of the engine and its host."""
        with self._translated("its facts"):
            return responses.engine_info(self._client.info(), self._client.api_version)

    def claim(self, info: EngineInfo) -> None:
        """Keep every other nova-compute off the engine until ``release``; again is fine.

        :raises InvalidConfiguration: another one has it
        """
        self._claim.take(info.data_root)

    def release(self) -> None:
        """Let another nova-compute have the engine."""
        self._claim.release()

    # -- containers ---------------------------------------------------------------------------

    def list_containers(self, label: str) -> list[Container]:
        """Return all containers, in any state, that carry the label."""
        with self._translated("the list of containers"):
            rows = self._client.containers(all=True, filters={"label": label})
            return [responses.container(row) for row in rows]

    def inspect_container(self, container: str) -> ContainerDetail:
        """Return what the engine knows of a container, by name or id.

        :raises ContainerNotFound: there is none
        """
        with self._translated("an inspection"):
            return responses.container_detail(self._client.inspect_container(container))

    def inspect_storage(self, container: str) -> Storage:
        """Return where a container's files are; ContainerNotFound if there is none."""
        with self._translated("an inspection"):
            return responses.storage(self._client.inspect_container(container))

    def create_container(self, spec: ContainerSpec) -> str:
        """Create a container that has no network of the engine's; return its id."""
        with self._translated("the creation"):
            created = self._client.create_container_from_config(
                engine_requests.container_config(spec), name=spec.name
            )
        return str(created["Id"])

    def start_container(self, container: str) -> None:
        """Start a container; one that runs already is left alone."""
        with self._translated("the start"):
            self._client.start(container)

    def update_container(self, container: str, limits: Limits) -> None:
        """Change those limits that the engine keeps, of a running container at once.

        The size of its disk is not among them: no engine changes that. No CPUs or NUMA nodes mean
        no change: the engine has no word for any.
        """
        with self._translated("the new limits"):
            client = self._client
            # the SDK's own call has no limit of processes
            response = client.post(
                f"{client.base_url}/v{client.api_version}/containers/{container}/update",
                json=engine_requests.limit_changes(limits),
                timeout=self._timeout,
            )
            try:
                response.raise_for_status()
            except requests.HTTPError as error:
                raise errors.create_api_error_from_http_exception(error) from error

    def signal_container(self, container: str, signal: str) -> None:
        """Send a signal to the first process of a running container."""
        with self._translated(f"the signal {signal}"):
            self._client.kill(container, signal)

    def wait_container(self, container: str, timeout: float) -> int | None:
        """Wait until a container does not run; return its exit code, None after ``timeout`` s."""
        try:
            with self._translated("a wait"):
                return int(self._client.wait(container, timeout=timeout)["StatusCode"])
        except exception.EngineUnavailable as error:
            if is_read_timeout(error.__cause__):
                return None
            raise

    def pause_container(self, container: str) -> None:
        """Freeze all processes of a container."""
        with self._translated("the pause"):
            self._client.pause(container)

    def unpause_container(self, container: str) -> None:
        """Let the processes of a frozen container go on."""
        with self._translated("the end of the pause"):
            self._client.unpause(container)

    def rename_container(self, container: str, name: str) -> None:
        """Give a container another name, which no other may have."""
        with self._translated("a new name"):
            self._client.rename(container, name)

    def remove_container(self, container: str) -> None:
        """Kill and remove a container and its anonymous volumes; absent is fine."""
        with (
            contextlib.suppress(exception.ContainerNotFound),
            self._translated("the removal"),
        ):
            self._client.remove_container(container, v=True, force=True)

    def remove_unused_overlays(self) -> None:
        """Remove the overlays of containers that are gone; those that can't be are left."""
        with self._translated("the list of overlays"):
            found = self._client.volumes({"label": naming.LABEL_OVERLAY, "dangling": True})
        for overlay in found["Volumes"] or ():
            with (
                contextlib.suppress(exception.EngineError),
                self._translated("the removal of an overlay"),
            ):
                self._client.remove_volume(overlay["Name"])

    def put_files(self, container: str, files: Mapping[str, bytes]) -> None:
        """Write files, by path below the container's root, owned by root and readable by all.

        The engine unpacks them confined to the container's file system, so no link in the image
        leads out of it. Works on a container that never ran.
        """
        with self._translated("the files"):
            self._client.put_archive(container, "/", engine_requests.tar_of(files))

    def read_file(self, container: str, path: str) -> bytes | None:
        """Return the content of a plain file; None if there is none, or one above 64 KiB.

        A symbolic link is none. Works on a container that does not run.
        """
        try:
            with self._translated("the file"):
                chunks, _ = self._client.get_archive(container, path)
                return engine_requests.only_file(chunks)
        except exception.ContainerNotFound:
            # the engine says the same of a missing path
            return None

    def read_console(self, container: str, most: int) -> bytes:
        """Return the end of what the container wrote, at most ``most`` bytes.

        The engine keeps it through restarts of the container and of itself, in files that it
        rotates. It is read in pieces, since a tenant decides how long a line is.
        """
        end = b""
        with (
            self._translated("the console log"),
            self._client.get(
                self._path(f"/containers/{container}/logs"),
                params={"stdout": 1, "stderr": 1, "tail": _LOG_TAIL_LINES},
                stream=True,
                timeout=self._timeout,
            ) as response,
        ):
            self._client._raise_for_status(response)
            for chunk in response.iter_content(_CHUNK_BYTES):
                end = (end + chunk)[-most:]
        return end

    def has_file(self, container: str, path: str) -> bool:
        """Tell whether there is something at a path in a container, links followed inside it."""
        try:
            with self._translated("a look at a file"):
                answer = self._client.head(
                    self._path(f"/containers/{container}/archive"),
                    params={"path": path},
                    timeout=self._timeout,
                )
                self._client._raise_for_status(answer)
        except exception.ContainerNotFound:
            return False
        return True

    def open_terminal(self, container: str, command: Iterable[str]) -> Terminal:
        """Run a command as root on a terminal of its own in a running container."""
        with self._translated("a terminal"):
            created = self._client.exec_create(
                container,
                list(command),
                stdin=True,
                tty=True,
                user="0",
                environment={"TERM": "xterm"},
                detach_keys=_DETACH_KEYS,
            )["Id"]
            return self._upgrade(
                f"/exec/{created}/start", {}, {"Tty": True, "Detach": False}, f"/exec/{created}"
            )

    def attach_terminal(self, container: str) -> Terminal:
        """Open the terminal of a running container's first process, from now on."""
        wanted = {"stream": 1, "stdin": 1, "stdout": 1, "stderr": 1, "detachKeys": _DETACH_KEYS}
        path = f"/containers/{container}"
        with self._translated("its terminal"):
            return self._upgrade(f"{path}/attach", wanted, None, path)

    def resize_terminal(self, terminal: Terminal, rows: int, columns: int) -> None:
        """Tell a terminal its size."""
        with self._translated("the size of a terminal"):
            answer = self._client.post(
                self._path(f"{terminal.path}/resize"),
                params={"h": rows, "w": columns},
                timeout=self._timeout,
            )
            self._client._raise_for_status(answer)

    def terminal_process(self, terminal: Terminal) -> int:
        """Return the process that ``open_terminal`` started and that still runs, else 0."""
        if not terminal.path.startswith("/exec/"):
            return 0
        with self._translated("the state of a terminal"):
            found = self._client.exec_inspect(terminal.path.removeprefix("/exec/"))
        return int(found["Pid"]) if found["Running"] else 0

    def read_usage(self, container: str) -> Usage:
        """Return the counters of a running container."""
        with self._translated("the usage"):
            found = self._client.stats(container, stream=False, one_shot=True)
            with responses.understood():
                return engine_requests.usage(found)

    def watch_events(
        self, label: str, actions: Iterable[str], since_ns: int, quiet: float
    ) -> Iterator[ContainerEvent]:
        """Yield what happens to the containers that carry the label, from a moment on.

        Ends when nothing happened for ``quiet`` seconds, so that a dead connection is noticed.

        :param since_ns: nanoseconds since the epoch by the engine's clock; the engine remembers
            its last few hundred events, until it restarts
        """
        query = {
            "since": f"{since_ns // 10**9}.{since_ns % 10**9:09}",
            "filters": json.dumps(
                {"type": ["container"], "label": [label], "event": list(actions)}
            ),
        }
        try:
            # the SDK's own call waits without a bound
            with (
                self._translated("the events"),
                self._client.get(
                    self._path("/events"), params=query, stream=True, timeout=quiet
                ) as response,
            ):
                response.raise_for_status()
                for line in response.iter_lines(chunk_size=None):
                    yield responses.event(line)
        except exception.EngineUnavailable as error:
            if not is_read_timeout(error.__cause__):
                raise

    # -- images -------------------------------------------------------------------------------

    def inspect_image(self, name: str) -> EngineImage:
        """Return an image by name or id.

        :raises EngineImageNotFound: there is none
        """
        with self._translated("an image's inspection"):
            found = self._client.inspect_image(name)
        config = found.get("Config") or {}
        return EngineImage(
            id=found["Id"],
            size_bytes=found["Size"],
            entrypoint=tuple(config.get("Entrypoint") or ()),
            command=tuple(config.get("Cmd") or ()),
            stop_signal=config.get("StopSignal") or "",
            platform=f"{found.get('Os', '')}/{found.get('Architecture', '')}",
            named_at=engine_requests.moment((found.get("Metadata") or {}).get("LastTagTime")),
        )

    def layer_folders(self, image: str, author: str) -> tuple[str, ...]:
        """Return where an image's highest layers are that its history says were made by ``author``.

        Only the storage driver overlay2 has such folders.
        """
        with self._translated("an image's history"):
            history = self._client.history(image)
            storage = self._client.inspect_image(image)["GraphDriver"]
        made = itertools.takewhile(lambda entry: entry["CreatedBy"] == author, history)
        if storage["Name"] != "overlay2":
            return ()
        folders = [storage["Data"]["UpperDir"], *storage["Data"].get("LowerDir", "").split(":")]
        return tuple(folders[: len(list(made))])

    def list_images(self, pattern: str) -> dict[str, int]:
        """Return the names that match a pattern, each with its image's size in bytes."""
        with self._translated("the list of images"):
            rows = self._client.images(filters={"reference": pattern})
        return {
            name: row["Size"]
            for row in rows
            for name in row.get("RepoTags") or ()
            if not name.startswith("<none>")
        }

    def resolve_digest(self, name: str, registry: str, credentials_path: str) -> str:
        """Return the digest that a name has in its registry now.

        :param credentials_path: a file as of ``docker login``; may be empty
        :raises EngineError: the registry does not answer, or does not tell
        """
        with self._of_registry("a look into a registry"):
            found = self._client.inspect_distribution(
                name, auth_config=read_credentials(registry, credentials_path)
            )
        digest = str(found["Descriptor"]["digest"])
        if not _DIGEST.fullmatch(digest):
            raise exception.EngineError(
                operation="a look into a registry", reason="the registry's digest is malformed"
            )
        return digest

    def pull_image(
        self, repository: str, digest: str, registry: str, credentials_path: str
    ) -> None:
        """Fetch an image from a registry, under its digest alone.

        :raises EngineError: the registry does not answer, or has no such image
        """
        credentials = read_credentials(registry, credentials_path)
        operation = "an image of a registry"
        # the SDK's own call waits without a bound
        with (
            self._of_registry(operation),
            self._client.post(
                self._path("/images/create"),
                params={"fromImage": repository, "tag": digest},
                headers={"X-Registry-Auth": auth.encode_header(credentials)} if credentials else {},
                stream=True,
                timeout=self._load_timeout,
            ) as response,
        ):
            for _ in self._told(response, operation):
                pass

    def push_image(self, repository: str, tag: str, registry: str, credentials_path: str) -> str:
        """Put an image into a registry, which gets the layers that it lacks; return its digest.

        :raises EngineError: the registry does not answer, or refuses
        """
        credentials = read_credentials(registry, credentials_path)
        operation = "an image for a registry"
        digest = ""
        with (
            self._of_registry(operation),
            self._client.post(
                self._path(f"/images/{repository}/push"),
                params={"tag": tag},
                headers={"X-Registry-Auth": auth.encode_header(credentials)},
                stream=True,
                timeout=self._load_timeout,
            ) as response,
        ):
            for message in self._told(response, operation):
                digest = (message.get("aux") or {}).get("Digest", digest)
        if not _DIGEST.fullmatch(digest):
            raise exception.EngineError(operation=operation, reason="it got no digest")
        return digest

    def unpack_layer(self, chunks: Iterator[bytes], repository: str, tag: str) -> str:
        """Unpack a plain tar archive, streamed, as the one layer of a new image.

        The engine writes it once, and takes no name or digest out of it.

        :return: the layer's SHA-256 in hex, as the engine found it
        :raises EngineError: the engine can't unpack it; there is no image then
        """
        operation = "a layer"
        with (
            self._translated(operation),
            self._client.post(
                self._path("/images/create"),
                params={"fromSrc": "-", "repo": repository, "tag": tag},
                data=chunks,
                stream=True,
                timeout=self._load_timeout,
            ) as response,
        ):
            for _ in self._told(response, operation):
                pass
            found = self._client.inspect_image(f"{repository}:{tag}")
        return str(found["RootFS"]["Layers"][0]).removeprefix("sha256:")

    def load_image(self, chunks: Iterable[bytes]) -> str:
        """Load an archive of one image without tags, streamed; return the image's id."""
        loaded = ""
        with self._translated("an image archive"):
            client = self._connect(self._load_timeout)
            try:
                for message in client.load_image(chunks, quiet=True):
                    if "error" in message:
                        raise exception.EngineError(
                            operation="an image archive", reason=message["error"]
                        )
                    _, marker, tail = message.get("stream", "").partition("Loaded image ID: ")
                    loaded = tail.strip() if marker else loaded
            finally:
                client.close()
        if not loaded:
            raise exception.EngineError(
                operation="an image archive", reason="it named no image that it loaded"
            )
        return loaded

    def save_image(self, name: str) -> Iterator[bytes]:
        """Yield the archive of an image, streamed."""
        with self._translated("an image's archive"):
            client = self._connect(self._load_timeout)
            try:
                yield from client.get_image(name)
            finally:
                client.close()

    def tag_image(self, image_id: str, repository: str, tag: str) -> None:
        """Give an image a name of ours."""
        with self._translated("a tag"):
            self._client.tag(image_id, repository, tag)

    def remove_image(self, name: str) -> None:
        """Remove an image's name, and the image with its last name; absent is fine."""
        with (
            contextlib.suppress(exception.EngineImageNotFound),
            self._translated("an image's removal"),
        ):
            self._client.remove_image(name)

    # -- requests -----------------------------------------------------------------------------

    def _upgrade(
        self, path: str, query: Mapping[str, Any], body: Any, terminal_path: str
    ) -> Terminal:
        """Make a request after which its connection is a terminal."""
        if self._url.startswith("https:"):
            raise exception.EngineError(
                operation="a terminal", reason="its connection is encrypted; use a Unix socket"
            )
        # of its own: this connection serves no other request
        client = self._connect(self._timeout)
        try:
            response = client.post(
                self._path(path),
                params=query,
                json=body,
                headers={"Connection": "Upgrade", "Upgrade": "tcp"},
                stream=True,
                timeout=self._timeout,
            )
            client._raise_for_status(response)
            # as the SDK finds it, whose own call drops what has come already
            reader = response.raw._fp.fp
            reader.raw._sock.setblocking(False)
            early = bytes(reader.peek())
            connection = socket.socket(fileno=os.dup(reader.fileno()))
        finally:
            client.close()
        return Terminal(connection, early, terminal_path)
