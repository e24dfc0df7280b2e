# SPDX-License-Identifier: Apache-2.0
"""A client of the Docker Engine's REST API; only this module and ``connection`` import the SDK.

Methods return the dataclasses of ``model`` and raise errors of ``novadocker.exception``. They take
and return no object of Nova's.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import requests
from docker import auth, errors

from novadocker import exception, naming
from novadocker.virt.docker.engine import requests as engine_requests
from novadocker.virt.docker.engine import responses
from novadocker.virt.docker.engine.claim import EngineClaim
from novadocker.virt.docker.engine.connection import (
    Connection,
    Options,
    Tls,
    is_read_timeout,
    raise_for_message,
    read_credentials,
)
from novadocker.virt.docker.engine.pull_bounds import PullBounds
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

# The engine splits lines after 16 KiB.
_LOG_TAIL_LINES = 2000
_CHUNK_BYTES = 65536

# The default (ctrl-p ctrl-q) would take a key from every shell. The engine's API can't turn it off,
# so this is a sequence that nobody types.
_DETACH_KEYS = "ctrl-@,ctrl-^,ctrl-@,ctrl-^,ctrl-@"

# The runtime shim sets the same size for the first process.
_ROWS, _COLUMNS = 24, 80


class Engine(Connection):
    """A client of the engine at ``url``; may be shared between threads.

    Every method raises ``EngineUnavailable`` if the engine does not answer within ``timeout``
    seconds, and ``EngineError`` if it answers with an error. A method about one container raises
    ``ContainerHangs`` if only that request is not answered.

    :param load_timeout: instead of ``timeout`` while the engine loads, pulls or saves an image
    """

    def __init__(self, url: str, timeout: int, load_timeout: int, tls: Tls | None = None) -> None:
        super().__init__(url, timeout, load_timeout, tls)
        self._claim = EngineClaim()

    @classmethod
    def from_options(cls, options: Options, timeout: int | None = None) -> Engine:
        """Return a client of the engine that nova-compute is configured to use.

        :param options: the option group ``docker``
        :param timeout: replaces both timeouts of the options
        """
        return cls(
            options.api_url,
            timeout or options.api_timeout,
            timeout or options.image_load_timeout,
            Tls(options.ca_file, options.cert_file, options.key_file),
        )

    # -- the engine ---------------------------------------------------------------------------

    def info(self) -> EngineInfo:
        """Return the properties of the engine and its host."""
        with self._translate_errors("to describe itself"):
            return responses.engine_info(self._client.info(), self._client.api_version)

    def claim(self, info: EngineInfo) -> None:
        """Claim the engine for this nova-compute until ``release``. Idempotent.

        :raises InvalidConfiguration: another nova-compute holds the claim
        """
        self._claim.take(info.data_root)

    def release(self) -> None:
        """Release the claim. Does nothing if there is none."""
        self._claim.release()

    # -- containers ---------------------------------------------------------------------------

    def list_containers(self, label: str) -> list[Container]:
        """Return all containers with the label, in any state."""
        with self._translate_errors("to list containers"):
            rows = self._client.containers(all=True, filters={"label": label})
            return [responses.container(row) for row in rows]

    def inspect_container(self, container: str) -> ContainerDetail:
        """Return the details of a container.

        :param container: name or id
        :raises ContainerNotFound: the container does not exist
        """
        with self._about_container("to inspect a container"):
            return responses.container_detail(self._client.inspect_container(container))

    def inspect_storage(self, container: str) -> Storage:
        """Return the directories of a container's files.

        :raises ContainerNotFound: the container does not exist
        """
        with self._about_container("to inspect a container"):
            return responses.storage(self._client.inspect_container(container))

    def create_container(self, spec: ContainerSpec) -> str:
        """Create a container without a network of the engine. Return its id."""
        with self._translate_errors("to create the container"):
            created = self._client.create_container_from_config(
                engine_requests.container_config(spec), name=spec.name
            )
        return str(created["Id"])

    def start_container(self, container: str) -> None:
        """Start a container. Does nothing if it runs."""
        with self._about_container("to start the container"):
            self._client.start(container)

    def update_container(self, container: str, limits: Limits) -> None:
        """Change the limits that the engine sets; a running container gets them at once.

        The size of the disk does not change, because no engine can change it. If the limits name no
        CPUs or NUMA nodes, these do not change either, because the API has no value for "all".
        """
        with self._about_container("to change the limits"):
            client = self._client
            # The SDK's function does not support the limit of processes.
            response = client.post(
                f"{client.base_url}/v{client.api_version}/containers/{container}/update",
                json=engine_requests.update_body(limits),
                timeout=self._timeout,
            )
            try:
                response.raise_for_status()
            except requests.HTTPError as error:
                raise errors.create_api_error_from_http_exception(error) from error

    def signal_container(self, container: str, signal: str) -> None:
        """Send a signal to the first process of a running container."""
        with self._about_container(f"to send {signal}"):
            self._client.kill(container, signal)

    def wait_container(self, container: str, timeout: float) -> int | None:
        """Wait until a container does not run.

        :param timeout: in seconds
        :returns: the exit status; None if the container still runs after ``timeout``
        """
        try:
            with self._translate_errors("to wait for the container's end"):
                return int(self._client.wait(container, timeout=timeout)["StatusCode"])
        except exception.EngineUnavailable as error:
            if is_read_timeout(error.__cause__):
                return None
            raise

    def pause_container(self, container: str) -> None:
        """Freeze all processes of a container."""
        with self._about_container("to pause the container"):
            self._client.pause(container)

    def unpause_container(self, container: str) -> None:
        """Thaw the processes of a frozen container."""
        with self._about_container("to unpause the container"):
            self._client.unpause(container)

    def rename_container(self, container: str, name: str) -> None:
        """Rename a container.

        :raises EngineError: another container has the name
        """
        with self._about_container("to rename the container"):
            self._client.rename(container, name)

    def remove_container(self, container: str) -> None:
        """Kill and remove a container and its anonymous volumes.

        Does nothing if the container does not exist.
        """
        with (
            contextlib.suppress(exception.ContainerNotFound),
            self._about_container("to remove the container"),
        ):
            self._client.remove_container(container, v=True, force=True)

    def remove_unused_overlays(self) -> None:
        """Remove the overlays of containers that no longer exist, except those that are in use."""
        with self._translate_errors("to list volumes"):
            found = self._client.volumes({"label": naming.LABEL_OVERLAY, "dangling": True})
        for overlay in found["Volumes"] or ():
            with (
                contextlib.suppress(exception.EngineError),
                self._translate_errors("to remove a volume"),
            ):
                self._client.remove_volume(overlay["Name"])

    def put_files(self, container: str, files: Mapping[str, bytes]) -> None:
        """Write files by path below the container's root, owned by root and readable by all.

        The engine resolves symbolic links within the container's file system. Works on a container
        that has never run.
        """
        with self._about_container("to write files"):
            self._client.put_archive(container, "/", engine_requests.create_archive(files))

    def read_file(self, container: str, path: str) -> bytes | None:
        """Return the content of a regular file of at most 64 KiB.

        Returns None if the file does not exist, is larger, or is of another type, such as a
        symbolic link. Works on a container that does not run.
        """
        try:
            with self._about_container("to read a file"):
                chunks, _ = self._client.get_archive(container, path)
                return engine_requests.extract_file(chunks)
        except exception.ContainerNotFound:
            # The engine's error is the same for a path that does not exist.
            return None

    def export_container(self, container: str) -> Iterator[bytes]:
        """Yield a tar archive of the files of a container, without its volumes, streamed."""
        with self._about_container("to export the container"):
            client = self._connect(self._load_timeout)
            try:
                yield from client.export(container)
            finally:
                client.close()

    def read_console(self, container: str, most: int) -> bytes:
        """Return the end of the container's console log, at most ``most`` bytes.

        The log survives restarts of the container and of the engine, which rotates its files. It is
        read in chunks, because a tenant can write lines of any length.
        """
        end = b""
        with (
            self._about_container("to read the console log"),
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
        """Return True if a path exists in a container; symbolic links are resolved inside it."""
        with self._about_container("to look up a file"):
            answer = self._client.head(
                self._path(f"/containers/{container}/archive"),
                params={"path": path},
                timeout=self._timeout,
            )
            # The answer to HEAD has no message, so as an error it would be an unknown one.
            if answer.status_code == requests.codes.not_found:
                return False
            self._client._raise_for_status(answer)
        return True

    def open_terminal(self, container: str, command: Iterable[str]) -> Terminal:
        """Run a command as root on a new terminal of 24 rows in a running container."""
        with self._about_container("to open a terminal"):
            created = self._client.exec_create(
                container,
                list(command),
                stdin=True,
                tty=True,
                user="0",
                environment={"TERM": "xterm"},
                detach_keys=_DETACH_KEYS,
            )["Id"]
            terminal = self._upgrade(
                f"/exec/{created}/start", {}, {"Tty": True, "Detach": False}, f"/exec/{created}"
            )
        # The engine refuses the size of a terminal that has ended. After each error,
        # the caller gets the terminal, because the caller ends its process.
        with contextlib.suppress(exception.EngineError, exception.EngineUnavailable):
            self.resize_terminal(terminal, _ROWS, _COLUMNS)
        return terminal

    def attach_terminal(self, container: str) -> Terminal:
        """Open the terminal of a running container's first process, without its earlier output.

        The terminal keeps its size, because some programs, such as Apache, end at SIGWINCH.
        """
        wanted = {"stream": 1, "stdin": 1, "stdout": 1, "stderr": 1, "detachKeys": _DETACH_KEYS}
        path = f"/containers/{container}"
        with self._about_container("to open the console"):
            return self._upgrade(f"{path}/attach", wanted, None, path)

    def resize_terminal(self, terminal: Terminal, rows: int, columns: int) -> None:
        """Set the size of a terminal in characters.

        If the size differs, the kernel sends SIGWINCH to the terminal's foreground processes.
        """
        with self._about_container("to resize a terminal"):
            answer = self._client.post(
                self._path(f"{terminal.path}/resize"),
                params={"h": rows, "w": columns},
                timeout=self._timeout,
            )
            self._client._raise_for_status(answer)

    def terminal_process(self, terminal: Terminal) -> int:
        """Return the id of the process that ``open_terminal`` started; 0 if it has ended."""
        if not terminal.path.startswith("/exec/"):
            return 0
        with self._about_container("to inspect a terminal"):
            found = self._client.exec_inspect(terminal.path.removeprefix("/exec/"))
        return int(found["Pid"]) if found["Running"] else 0

    def read_usage(self, container: str) -> Usage:
        """Return the counters of a running container."""
        with self._about_container("to read the statistics"):
            found = self._client.stats(container, stream=False, one_shot=True)
            with responses.parsing():
                return engine_requests.usage(found)

    def watch_events(
        self, label: str, actions: Iterable[str], since_ns: int, quiet: float
    ) -> Iterator[ContainerEvent]:
        """Yield the events of containers with the label, beginning at a time in the past.

        Ends after ``quiet`` seconds without an event, so that the caller notices a dead connection.

        :param since_ns: nanoseconds since the epoch by the engine's clock; the engine stores its
            last few hundred events until it restarts
        :raises EngineUnavailable: the connection is lost, or the engine hangs
        """
        query = {
            "since": f"{since_ns // 10**9}.{since_ns % 10**9:09}",
            "filters": json.dumps(
                {"type": ["container"], "label": [label], "event": list(actions)}
            ),
        }
        try:
            # The SDK's function has no timeout.
            with (
                self._translate_errors("to send events"),
                self._client.get(
                    self._path("/events"), params=query, stream=True, timeout=quiet
                ) as response,
            ):
                response.raise_for_status()
                for line in response.iter_lines(chunk_size=None):
                    yield responses.event(line)
        except exception.EngineUnavailable as error:
            # The engine sends the headers at once, so it hangs if they do not arrive.
            without_headers = isinstance(error.__cause__, requests.ReadTimeout)
            if without_headers or not is_read_timeout(error.__cause__):
                raise

    # -- images -------------------------------------------------------------------------------

    def inspect_image(self, name: str) -> EngineImage:
        """Return an image by name or id.

        :raises EngineImageNotFound: the image does not exist
        """
        with self._translate_errors("to inspect an image"):
            client = self._client
            # The SDK's function does not ask for manifests, which tell containerd's sizes.
            answer = client.get(
                client._url("/images/{0}/json", name),
                params={"manifests": 1},
                timeout=self._timeout,
            )
            client._raise_for_status(answer)
            found = answer.json()
            size = responses.unpacked_bytes(found)
            layers = responses.image_layers(found)
        config = found.get("Config") or {}
        return EngineImage(
            id=found["Id"],
            size_bytes=size,
            entrypoint=tuple(config.get("Entrypoint") or ()),
            command=tuple(config.get("Cmd") or ()),
            stop_signal=config.get("StopSignal") or "",
            platform=f"{found.get('Os', '')}/{found.get('Architecture', '')}",
            named_at=engine_requests.moment((found.get("Metadata") or {}).get("LastTagTime")),
            environment=tuple(config.get("Env") or ()),
            labels=tuple(itertools.chain.from_iterable((config.get("Labels") or {}).items())),
            working_folder=config.get("WorkingDir") or "",
            volumes=tuple(config.get("Volumes") or ()),
            layers=layers,
        )

    def layer_directories(self, image: str, author: str) -> tuple[str, ...]:
        """Return the directories of an image's top layers that ``author`` created.

        Returns no directories with other storage drivers than overlay2.

        :param author: ``created_by`` of the layers in the image's history
        """
        with self._translate_errors("to read an image's history"):
            # With containerd's image store, Engine 29 leaves the driver out.
            storage = self._client.inspect_image(image).get("GraphDriver") or {}
            if storage.get("Name") != "overlay2":
                return ()
            history = self._client.history(image)
        made = itertools.takewhile(lambda entry: entry["CreatedBy"] == author, history)
        paths = [storage["Data"]["UpperDir"], *storage["Data"].get("LowerDir", "").split(":")]
        return tuple(paths[: len(list(made))])

    def list_images(self, pattern: str) -> dict[str, int]:
        """Return the size in bytes of each image whose name matches a pattern, by name."""
        with self._translate_errors("to list images"):
            rows = self._client.images(filters={"reference": pattern})
        return {
            name: row["Size"]
            for row in rows
            for name in row.get("RepoTags") or ()
            if not name.startswith("<none>")
        }

    def resolve_digest(self, name: str, registry: str, credentials_path: str) -> str:
        """Return the current digest of a name in its registry.

        :param credentials_path: path of a file of ``docker login``; empty for no credentials
        :raises EngineError: the registry does not answer, or refuses
        """
        operation = "to look up the image in its registry"
        with self._translate_registry_errors(operation):
            found = self._client.inspect_distribution(
                name, auth_config=read_credentials(registry, credentials_path)
            )
        digest = str(found["Descriptor"]["digest"])
        if not naming.DIGEST.fullmatch(digest):
            raise exception.EngineError(
                operation=operation, reason="the registry's digest is malformed"
            )
        return digest

    def pull_image(
        self,
        repository: str,
        digest: str,
        registry: str,
        credentials_path: str,
        folder: str,
        most: int = 0,
    ) -> None:
        """Pull an image from a registry by its digest; the image gets no tag.

        :param folder: directory below which the engine unpacks layers
        :param most: bytes that the image may have when it is unpacked; 0 means no bound
        :raises ImageTooLarge: it has more; the engine does not keep it
        :raises PullCutOff: this host has no room for it, or the pull takes too long
        :raises EngineError: the registry does not answer, or does not have the image
        """
        name = f"{repository}@{digest}"
        bounds = PullBounds(name, folder, most)
        credentials = read_credentials(registry, credentials_path)
        operation = "to pull the image"
        try:
            # The SDK's function has no timeout.
            with (
                self._translate_registry_errors(operation),
                self._client.post(
                    self._path("/images/create"),
                    params={"fromImage": repository, "tag": digest},
                    headers={"X-Registry-Auth": auth.encode_header(credentials)}
                    if credentials
                    else {},
                    stream=True,
                    timeout=self._load_timeout,
                ) as response,
                bounds.watched(partial(_cut, response)),
            ):
                # The engine ends the pull when the connection is closed.
                for message in self._read_progress(response):
                    bounds.note(message)
            bounds.check(self.inspect_image(name).size_bytes)
        except (exception.ImageTooLarge, exception.PullCutOff):
            self.remove_image(name)
            raise

    def push_image(self, repository: str, tag: str, registry: str, credentials_path: str) -> str:
        """Push an image to a registry. Return its digest there.

        :raises EngineError: the registry does not answer, or refuses
        """
        credentials = read_credentials(registry, credentials_path)
        operation = "to push the image"
        digest = ""
        with (
            self._translate_registry_errors(operation),
            self._client.post(
                self._path(f"/images/{repository}/push"),
                params={"tag": tag},
                headers={"X-Registry-Auth": auth.encode_header(credentials)},
                stream=True,
                timeout=self._load_timeout,
            ) as response,
        ):
            for message in self._read_progress(response):
                digest = (message.get("aux") or {}).get("Digest", digest)
        if not naming.DIGEST.fullmatch(digest):
            raise exception.EngineError(
                operation=operation, reason="the registry returned no digest"
            )
        return digest

    def unpack_layer(self, chunks: Iterator[bytes], repository: str, tag: str) -> str:
        """Unpack an uncompressed tar archive, streamed, as the only layer of a new image.

        The engine writes the archive to the disk once, and reads no name or digest from it.

        :returns: SHA-256 in hex of the layer, calculated by the engine
        :raises EngineError: the engine can't unpack the archive; then no image is created
        """
        operation = "to unpack a layer"
        with (
            self._translate_errors(operation),
            self._client.post(
                self._path("/images/create"),
                params={"fromSrc": "-", "repo": repository, "tag": tag},
                data=chunks,
                stream=True,
                timeout=self._load_timeout,
            ) as response,
        ):
            for _ in self._read_progress(response):
                pass
            found = self._client.inspect_image(f"{repository}:{tag}")
        return str(found["RootFS"]["Layers"][0]).removeprefix("sha256:")

    def load_image(self, chunks: Iterable[bytes]) -> str:
        """Load an archive of one image without tags, streamed. Return the image's id."""
        loaded = ""
        operation = "to load the image"
        with self._translate_errors(operation):
            client = self._connect(self._load_timeout)
            try:
                for message in client.load_image(chunks, quiet=True):
                    raise_for_message(message)
                    _, marker, tail = message.get("stream", "").partition("Loaded image ID: ")
                    loaded = tail.strip() if marker else loaded
            finally:
                client.close()
        if not loaded:
            raise exception.EngineError(
                operation=operation, reason="it did not report the id of the loaded image"
            )
        return loaded

    def save_image(self, name: str) -> Iterator[bytes]:
        """Yield the archive of an image, streamed."""
        with self._translate_errors("to save the image"):
            client = self._connect(self._load_timeout)
            try:
                yield from client.get_image(name)
            finally:
                client.close()

    def tag_image(self, image_id: str, repository: str, tag: str) -> None:
        """Add a name to an image."""
        with self._translate_errors("to tag the image"):
            self._client.tag(image_id, repository, tag)

    def remove_image(self, name: str) -> None:
        """Remove a name of an image, and the image if this was its last name.

        Does nothing if the name does not exist.
        """
        with (
            contextlib.suppress(exception.EngineImageNotFound),
            self._translate_errors("to remove the image"),
        ):
            self._client.remove_image(name)

    # -- requests -----------------------------------------------------------------------------

    def _upgrade(
        self, path: str, query: Mapping[str, Any], body: Any, terminal_path: str
    ) -> Terminal:
        """Send a request that turns its connection into a terminal's."""
        if self._url.startswith("https:"):
            raise exception.EngineError(
                operation="to open a terminal",
                reason="the connection to the engine is encrypted; use a Unix socket",
            )
        # A separate client, because its connection serves no other request.
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
            # The SDK finds the socket in the same way, but drops output that has already arrived.
            reader = response.raw._fp.fp
            reader.raw._sock.setblocking(False)
            early = bytes(reader.peek())
            connection = socket.socket(fileno=os.dup(reader.fileno()))
        finally:
            client.close()
        return Terminal(connection, early, terminal_path)


def _cut(response: Any) -> None:
    """End the connection of a response that another thread reads."""
    # Closing the socket would not wake the thread. A response without a body has no reader.
    reader = response.raw._fp.fp
    if reader is not None:
        with contextlib.suppress(OSError):
            # An encrypted socket's own function would change what the other thread uses.
            socket.socket.shutdown(reader.raw._sock, socket.SHUT_RDWR)
